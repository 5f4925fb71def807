"""Training clips that cannot be used: named once, counted over all processes, refused above `max_bad_fraction`."""

import logging
from collections.abc import Mapping

from clap.dataset.clips import ClapDataset
from clap.process_group import gather_objects
from clap.run_folder import describe_clips

log = logging.getLogger(__name__)


class SkippedClips:
    """The clips of a dataset that training has skipped.

    Attributes:
        problems: id of a clip -> why it is skipped.
    """

    def __init__(self, dataset: ClapDataset) -> None:
        self.dataset = dataset
        self.problems: dict[str, str] = {}

    def add(self, problems: Mapping[int, str]) -> None:
        """Log the clips of a step that cannot be used, each once; collective: each rank gives its own, {index: error}.

        Raises:
            ValueError: on every rank, more clips than `max_bad_fraction` allows cannot be used.
        """
        dataset = self.dataset
        for index, problem in (item for part in gather_objects(dict(problems)) for item in part.items()):
            if (clip_id := dataset.clips[index].id) in self.problems:
                continue
            log.warning("skipped in training: %s", problem)
            self.problems[clip_id] = problem
            count = len(self.problems) + len(dataset.missing)
            if count > dataset.max_bad_fraction * dataset.num_listed:
                raise ValueError(
                    f"{count} of {dataset.num_listed} training clips cannot be used, the last: {problem}; "
                    f"fix them or raise dataset.max_bad_fraction, now {dataset.max_bad_fraction:g} (`python -m clap "
                    "check` names all)"
                )

    def log_total(self) -> None:
        """Log how many clips training skipped."""
        if count := len(self.dataset.missing) + len(self.problems):
            message = "%d of %d training clips were skipped, the log names them"
            log.warning(message, count, self.dataset.num_listed)

    def count_used(self) -> dict[str, str]:
        """The number of clips that training used, as a tag."""
        dataset, count = self.dataset, len(self.dataset.missing) + len(self.problems)
        used = {"clips": f"{dataset.num_listed - count} of {dataset.num_listed}"}
        clips = describe_clips(used | {"published_clips": dataset.num_published})
        return {f"{dataset.kind}/{dataset.name}/clips": clips}

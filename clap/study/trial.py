"""The trial of a search that a job runs: its validations are reported to the pruner of the search, which may end it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clap.atomic import read_json
from clap.process_group import is_main, on_main
from clap.run_folder import TRIAL
from clap.study.job import Pruned

if TYPE_CHECKING:
    from optuna.trial import Trial


def follow_trial(run_dir: Path) -> Callable[..., None] | None:
    """What `ClapTrainer.after_validation` calls in a search with a pruner, which trial.json names; else None."""
    record = on_main(lambda: read_json(run_dir / TRIAL))
    if not record.get("pruner"):
        return None
    # Optuna is imported only by searches.
    from clap.study.search_storage import open_trial

    return PrunedTrial(open_trial(record, run_dir.parent) if is_main() else None)


class PrunedTrial:
    """Reports validations, and ends the job if the pruner decides so. Collective: rank 0 decides.

    Args:
        trial: on rank 0, the trial in its storage; None on the others.
    """

    def __init__(self, trial: "Trial | None") -> None:
        self.trial = trial

    def __call__(self, step: int, metric: float, *, ended: bool) -> None:
        """Report a metric after a validation.

        Args:
            step: of the optimizer, for the message.
            ended: the training has ended, there is nothing to prune.

        Raises:
            Pruned: the pruner ends the job.
        """
        if on_main(lambda: self.report(metric)) and not ended:
            raise Pruned(f"at step {step}: {metric:.4f} is below the validations of other trials", value=metric)

    def report(self, metric: float) -> bool:
        """Report a metric as that of the next validation, also after a resume; return whether to prune."""
        number = len(self.trial.storage.get_trial(self.trial._trial_id).intermediate_values) + 1
        self.trial.report(metric, number)
        return self.trial.should_prune()

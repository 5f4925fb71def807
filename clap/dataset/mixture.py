"""A mixture of corpora for training; each is evaluated separately."""

from collections.abc import Mapping
from pathlib import Path

from clap.corpus import Clip, Corpus, find_folder
from clap.dataset.registry import check_weights, find_corpus


class Mixture(Corpus):
    """The clips of several corpora, with a sampling weight for each in training.

    Layout of root: a folder for each corpus, named after it in any case: clotho/ or Clotho/.

    Args:
        corpora: {name: options}, such as {audiocaps: {version: v2}}.
        weights: {name: draws of each of its clips per training epoch}; 1 by default.

    Raises:
        FileNotFoundError: the folder of a corpus is missing.
        ValueError: a name, option or weight is invalid.
    """

    def __init__(
        self, root: str | Path, *, corpora: Mapping[str, Mapping], weights: Mapping[str, float] | None = None
    ) -> None:
        weights = dict(weights or {})
        if not corpora:
            raise ValueError("corpora={} is empty; name one or more in dataset.corpora")
        if unknown := sorted(weights.keys() - corpora.keys()):
            raise ValueError(f"weights: {unknown[0]} is not one of {', '.join(corpora)}; set dataset.weights")
        if absent := [name for name in corpora if find_folder(root, name) is None]:
            raise FileNotFoundError(
                f"{Path(root) / absent[0]} is missing; root={root} must contain one folder for each of "
                f"{', '.join(corpora)}"
            )
        found = [find_corpus(name, root, options) for name, options in corpora.items()]
        self.mixed = list(
            zip(found, check_weights([weights.get(name, 1.0) for name in corpora], len(found)), strict=True)
        )
        self.name = "_".join(corpus.name for corpus in found)
        self.max_duration = max(corpus.max_duration for corpus in found)

    @property
    def parts(self) -> list[tuple[Corpus, float]]:
        return self.mixed

    def clips(self, split: str) -> list[Clip]:
        return [clip for corpus, _ in self.mixed for clip in corpus.clips(split)]

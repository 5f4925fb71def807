"""Several corpora trained on together, each under its own name in evaluation."""

from collections.abc import Mapping
from pathlib import Path

from clap.corpus import Clip, Corpus, find_folder
from clap.dataset.registry import check_weights, find_corpus


class Mixture(Corpus):
    """The clips of several corpora, weighted in training.

    Args:
        root: folder that holds one of each corpus under its name, clotho/ or Clotho/.
        corpora: {name: its options}, such as {audiocaps: {version: v2}}.
        weights: {name: how often each of its clips comes in an epoch of training}; 1 where it is not given.

    Raises:
        FileNotFoundError: the folder of a corpus is missing. ValueError: unknown name, option or weight.
    """

    def __init__(
        self, root: str | Path, *, corpora: Mapping[str, Mapping], weights: Mapping[str, float] | None = None
    ) -> None:
        weights = dict(weights or {})
        if not corpora:
            raise ValueError("corpora={}: name one or more; set dataset.corpora")
        if unknown := sorted(weights.keys() - corpora.keys()):
            raise ValueError(f"weights: {unknown[0]} is not one of {', '.join(corpora)}; set dataset.weights")
        if absent := [name for name in corpora if find_folder(root, name) is None]:
            raise FileNotFoundError(
                f"{Path(root) / absent[0]} is missing; dataset.root={root} must be a folder that holds one each for "
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

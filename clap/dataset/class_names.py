"""The classes of a labelled corpus, from its index."""

from collections.abc import Iterator

from clap.corpus import SPLITS, Clip, Corpus


def list_classes(corpus: Corpus) -> list[str]:
    """The labels of the training clips, sorted.

    Raises:
        ValueError: no training clip has a label, or a class of another split has no training clip.
    """
    classes = {label for clip in iterate_clips(corpus, "train") for label in clip.all_labels}
    names = ", ".join(part.corpus.name for part in corpus.parts)
    if not classes:
        raise ValueError(
            f"no training clip of {names} has a label, which a classifier learns; set dataset=esc50, urbansound8k or "
            "fsd50k, or dataset=csv with a column of labels"
        )
    for split in SPLITS[1:]:
        for clip in iterate_clips(corpus, split):
            if unknown := [label for label in clip.all_labels if label not in classes]:
                raise ValueError(
                    f"no training clip of {names} has the class {unknown[0]!r} of its {split} clip {clip.id}; choose "
                    "other folds or splits, or remove the clips of this class"
                )
    return sorted(classes)


def iterate_clips(corpus: Corpus, split: str) -> Iterator[Clip]:
    for part in corpus.parts:
        yield from part.clips(split)

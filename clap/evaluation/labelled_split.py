"""The clips of a split that have a label, and the classes of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.evaluation.embedded_split import EmbeddedSplit


@dataclass
class LabelledSplit:
    """The clips of a split that have a label.

    Attributes:
        clip_ids: (clips,).
        audio_embedding: (clips, embed_dim), unit norm.
        targets: (clips,) int64 on the CPU, position of the label in class_names.
        class_names: (classes,) of all clips of the dataset, also of those without a recording.
    """

    clip_ids: list[str]
    audio_embedding: Tensor
    targets: Tensor
    class_names: list[str]


def require_labels(dataset: ClapDataset, clips: Sequence[Clip]) -> None:
    """ValueError if none of the clips of a dataset has a label."""
    if all(clip.label is None for clip in clips):
        raise ValueError(f"no clip of {dataset.name} ({dataset.kind}) has a label; choose evaluation=[retrieval]")


def list_class_names(dataset: ClapDataset) -> list[str]:
    """The labels of the listed clips of a split, sorted; those of clips that cannot be read too."""
    return sorted({clip.label for clip in [*dataset.clips, *dataset.missing] if clip.label is not None})


def select_labels(split: EmbeddedSplit) -> LabelledSplit:
    """The labelled clips of a split; ValueError if there are none."""
    rows = [row for row, clip in enumerate(split.clips) if clip.label is not None]
    labelled = [split.clips[row] for row in rows]
    require_labels(split.dataset, labelled)
    class_names = list_class_names(split.dataset)
    targets = torch.tensor([class_names.index(clip.label) for clip in labelled])
    return LabelledSplit([clip.id for clip in labelled], split.audio_embedding[rows], targets, class_names)

"""Splits through the audio encoder: the one that is evaluated, and others that an evaluator needs."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import make_loader
from clap.model import Clap

log = logging.getLogger(__name__)


@dataclass
class EmbeddedSplit:
    """The clips of a split, embedded.

    Attributes:
        audio_embedding: (clips, embed_dim), unit norm.
        index: (clips,) position of each row's clip in the dataset.
        problems: clip id -> why the clip is skipped.
    """

    dataset: ClapDataset
    audio_embedding: Tensor
    index: list[int]
    problems: dict[str, str]

    @property
    def clips(self) -> list[Clip]:
        """The clip of each row."""
        return [self.dataset.clips[i] for i in self.index]

    def by_corpus(self) -> "list[EmbeddedSplit]":
        """The split of each corpus alone: corpora that are mixed in training are evaluated as separate tasks."""
        parts = []
        for dataset, chosen in self.dataset.by_corpus:
            place = {index: new for new, index in enumerate(chosen)}
            rows = [row for row, index in enumerate(self.index) if index in place]
            ids = {clip.id for clip in [*dataset.clips, *dataset.missing]}
            problems = {clip_id: problem for clip_id, problem in self.problems.items() if clip_id in ids}
            index = [place[self.index[row]] for row in rows]
            if not index:
                raise ValueError(
                    f"no clip of {dataset.name} ({dataset.kind}) can be used; fix its files or remove it from dataset"
                )
            parts.append(EmbeddedSplit(dataset, self.audio_embedding[rows], index, problems))
        return parts


@dataclass
class Splits:
    """The splits of one corpus that an evaluator reads; `splits["train"]` is embedded on first use.

    Attributes:
        evaluated: the split that the metrics describe.
        others: split -> a function that embeds it; those that the evaluator names in `needs`.
    """

    evaluated: EmbeddedSplit
    others: Mapping[str, Callable[[], EmbeddedSplit]] = field(default_factory=dict)

    def __getitem__(self, kind: str) -> EmbeddedSplit:
        if kind == self.evaluated.dataset.kind:
            return self.evaluated
        if kind not in self.others:
            known = ", ".join([self.evaluated.dataset.kind, *self.others])
            raise ValueError(f"splits[{kind!r}] is not one of {known}; add it to `needs` of the evaluator")
        return self.others[kind]()


def embed_split(clap: Clap, loader: DataLoader) -> EmbeddedSplit:
    """Embed every clip of the loader's dataset, in evaluation mode.

    Raises:
        ValueError: more clips than `max_bad_fraction` allows cannot be used.
    """
    dataset: ClapDataset = loader.dataset
    embeddings, index, problems = [], [], {}
    with clap.inference():
        for batch in loader:
            problems |= {dataset.clips[i].id: problem for i, problem in batch.problems.items()}
            if len(batch):
                batch = batch.to(clap.device)
                embeddings.append(clap.embed_audio(batch.waveform, batch.lengths))
                index += batch.index.tolist()
    for clip_id, problem in problems.items():
        log.warning("%s split: %s skipped (%s)", dataset.kind, clip_id, problem)
    problems = {clip.id: "missing" for clip in dataset.missing} | problems  # the dataset has logged the missing ones
    if len(problems) > dataset.max_bad_fraction * dataset.num_listed or not index:
        clip_id, problem = next(iter(problems.items()))
        raise ValueError(
            f"{len(problems)} of {dataset.num_listed} clips of {dataset.name} ({dataset.kind}) cannot be used, "
            f"the first is {clip_id} ({problem}); fix them or raise dataset.max_bad_fraction, now "
            f"{dataset.max_bad_fraction:g}"
        )
    return EmbeddedSplit(dataset, torch.cat(embeddings), index, problems)


def make_evaluation_loader(loader: DataLoader) -> DataLoader:
    """A loader of the same clips for evaluation: in order, each with its first caption and middle window."""
    dataset: ClapDataset = copy.copy(loader.dataset)
    dataset.training = False
    vars(dataset).pop("by_corpus", None)  # cached, and holds the training dataset
    return make_loader(
        dataset,
        loader.collate_fn,
        batch_size=loader.batch_sampler.batch_size,
        num_workers=loader.num_workers,
        shuffle=False,
    )

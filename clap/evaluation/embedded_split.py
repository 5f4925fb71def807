"""Splits through the audio encoder: the one that is evaluated, and others that an evaluator needs."""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from clap import process_group
from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import Batch, EpochSampler, make_loader
from clap.progress import progress_bar
from clap.recordings import MINUTE, plan_batches
from clap.waveform import AudioError, AudioHeader

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

log = logging.getLogger(__name__)
Distort = Callable[[np.ndarray, int, str], np.ndarray]  # waveform (samples,), Hz and clip id -> waveform, for workers


@dataclass
class EmbeddedSplit:
    """The clips of a split, embedded.

    Attributes:
        audio_embedding: (clips, embed_dim), unit norm.
        index: (clips,) position of each row's clip in the dataset.
        problems: position of a clip in the dataset -> why it is skipped, of clips whose recording exists.
        is_cached: (clips,) whether the audio is from a cache, in 16 bits; None: none of it.
    """

    dataset: ClapDataset
    audio_embedding: Tensor
    index: list[int]
    problems: dict[int, str]
    is_cached: Tensor | None = None

    @property
    def clips(self) -> list[Clip]:
        """The clip of each row."""
        return [self.dataset.clips[i] for i in self.index]

    def gather(self, device: torch.device) -> "EmbeddedSplit":
        """The clips of all ranks, on every rank; collective."""
        own = (self.audio_embedding.cpu(), self.index, self.problems, self.is_cached)
        embeddings, index, problems, is_cached = zip(*process_group.gather_objects(own), strict=True)
        return EmbeddedSplit(
            self.dataset,
            torch.cat(embeddings).to(device),
            [i for part in index for i in part],
            {i: problem for part in problems for i, problem in part.items()},
            torch.cat(is_cached),
        )

    def by_corpus(self) -> "list[EmbeddedSplit]":
        """The split of each corpus alone: corpora that are mixed in training are evaluated as separate tasks."""
        parts = []
        for dataset, chosen in self.dataset.by_corpus:
            place = {index: new for new, index in enumerate(chosen)}
            rows = [row for row, index in enumerate(self.index) if index in place]
            problems = {place[old]: problem for old, problem in self.problems.items() if old in place}
            index = [place[self.index[row]] for row in rows]
            if not index:
                raise ValueError(
                    f"no clip of {dataset.name} ({dataset.kind}) can be used; fix its files or remove it from dataset"
                )
            is_cached = None if self.is_cached is None else self.is_cached[rows]
            parts.append(EmbeddedSplit(dataset, self.audio_embedding[rows], index, problems, is_cached))
        return parts


@dataclass
class Splits:
    """The splits of one corpus that an evaluator reads; `splits["train"]` is embedded on first use.

    Attributes:
        evaluated: the split that the metrics describe.
        others: split -> a function that embeds it; those that the evaluator names in `needs`.
        embed_distorted: embeds the evaluated clips again, each waveform changed by a function (None: unchanged), with
            the model's present windows; collective.
    """

    evaluated: EmbeddedSplit
    others: Mapping[str, Callable[[], EmbeddedSplit]] = field(default_factory=dict)
    embed_distorted: Callable[[Distort | None], EmbeddedSplit] | None = None

    def __getitem__(self, kind: str) -> EmbeddedSplit:
        if kind == self.evaluated.dataset.kind:
            return self.evaluated
        if kind not in self.others:
            known = ", ".join([self.evaluated.dataset.kind, *self.others])
            raise ValueError(f"splits[{kind!r}] is not one of {known}; add it to `needs` of the evaluator")
        return self.others[kind]()


def embed_split(clap: "Clap", loader: DataLoader) -> EmbeddedSplit:
    """Embed every clip of the loader's dataset, in evaluation mode; the order is that of the loader's sampler.

    Of several processes each embeds a part of the batches, and all return the whole split.

    Raises:
        ValueError: more clips than `max_bad_fraction` allows cannot be used, or a batch does not fit into memory.
    """
    dataset: ClapDataset = loader.dataset
    order = process_group.broadcast_object(list(loader.sampler))  # which may be random
    batches = batch_by_length(loader, order)
    found = embed_batches(clap, batches, dataset)
    if batches is not loader:
        found = found.gather(clap.device)
    place = {index: position for position, index in enumerate(order)}
    rows = sorted(range(len(found.index)), key=lambda row: place[found.index[row]])
    problems = {i: found.problems[i] for i in sorted(found.problems, key=place.get)}
    for i, problem in problems.items():
        log.warning("%s split: %s skipped (%s)", dataset.kind, dataset.clips[i].id, problem)
    bad = [(clip.id, "missing") for clip in dataset.missing]  # the dataset has logged them
    bad += [(dataset.clips[i].id, problem) for i, problem in problems.items()]
    if len(bad) > dataset.max_bad_fraction * dataset.num_listed or not rows:
        clip_id, problem = bad[0]
        raise ValueError(
            f"{len(bad)} of {dataset.num_listed} clips of {dataset.name} ({dataset.kind}) cannot be used, "
            f"the first is {clip_id} ({problem}); fix them or raise dataset.max_bad_fraction, now "
            f"{dataset.max_bad_fraction:g}"
        )
    index = [found.index[row] for row in rows]
    return EmbeddedSplit(dataset, found.audio_embedding[rows], index, problems, found.is_cached[rows])


def embed_distorted(clap: "Clap", split: EmbeddedSplit, loader: DataLoader, distort: Distort | None) -> EmbeddedSplit:
    """The clips of a split embedded again, from waveforms that the workers change; the rows are those of the split.

    Args:
        loader: over the split, or over a dataset that has it as a part.

    Raises:
        ValueError: a clip cannot be read any more.
    """
    own = make_evaluation_loader(loader, split.dataset)
    own.dataset.distort, own.dataset.window, own.dataset.frozen_audio = distort, clap.window, None
    found = embed_batches(clap, batch_by_length(own, split.index), own.dataset).gather(clap.device)
    if found.problems:
        index, problem = next(iter(found.problems.items()))
        clip_id = own.dataset.clips[index].id
        raise ValueError(f"{clip_id} was read before and cannot be read again ({problem}); restore it")
    row_of = {index: row for row, index in enumerate(found.index)}
    return replace(split, audio_embedding=found.audio_embedding[[row_of[index] for index in split.index]])


def embed_batches(clap: "Clap", loader: DataLoader, dataset: ClapDataset) -> EmbeddedSplit:
    """The clips of a loader, embedded, in the order of its batches."""
    embeddings, index, problems = [torch.empty(0, clap.embed_dim, device=clap.device)], [], {}
    is_cached = [torch.empty(0, dtype=torch.bool)]
    with clap.inference():
        for batch in progress_bar(loader, desc=f"{dataset.kind} split", unit="batch", leave=False):
            problems |= batch.problems
            if len(batch):
                index += batch.index.tolist()
                is_cached.append(batch.is_cached)
                embeddings.append(embed_batch(clap, batch, dataset))
    return EmbeddedSplit(dataset, torch.cat(embeddings), index, problems, torch.cat(is_cached))


def embed_batch(clap: "Clap", batch: Batch, dataset: ClapDataset) -> Tensor:
    """Embeddings (batch, embed_dim); ValueError if the batch does not fit into memory, with its longest clip."""
    try:
        batch = batch.to(clap.device)
        if batch.features is not None:
            batch = dataset.frozen_audio.complete(batch, clap.audio_encoder)
        return clap.embed_audio(batch.waveform, batch.lengths, batch.features)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    longest = int(batch.lengths.argmax())
    raise ValueError(
        f"a batch of {len(batch)} clips of {dataset.name} ({dataset.kind}) does not fit into memory, the longest is "
        f"{dataset.clips[batch.index[longest]].id} with {batch.lengths[longest] / dataset.sample_rate:.1f} s; lower "
        "dataset.batch_size, or skip long clips with dataset.longest_clip"
    )


def batch_by_length(loader: DataLoader, indices: Sequence[int]) -> DataLoader:
    """A loader of the given clips in batches of similar duration, the longest first; see `plan_batches`.

    A batch is padded to its longest clip, so that one long clip between short ones would fill the memory. Of several
    processes each gets every n-th batch, so that all have batches of each duration. A loader with batches of its own
    kind is returned as it is.
    """
    if not isinstance(loader.batch_sampler, EpochSampler | BatchSampler):
        return loader
    dataset: ClapDataset = loader.dataset
    durations = list(map(find_duration, dataset.share_headers(indices)))
    batches = list(plan_batches(durations, loader.batch_sampler.batch_size, window=dataset.window))
    own = batches[process_group.rank() :: process_group.world_size()]
    return DataLoader(
        dataset,
        batch_sampler=[[(0, indices[position]) for position in batch] for batch in own],  # with an epoch, here 0
        num_workers=loader.num_workers,
        multiprocessing_context=loader.multiprocessing_context,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
        pin_memory=loader.pin_memory,
        prefetch_factor=loader.prefetch_factor,
        timeout=loader.timeout,
    )


def find_duration(header: AudioHeader | AudioError | None) -> float:
    """Seconds of a clip: a minute if unknown, infinite if it is invalid, so that its error appears first."""
    if isinstance(header, AudioError):
        return math.inf
    return MINUTE if header is None else header.duration


def make_evaluation_loader(loader: DataLoader, dataset: ClapDataset | None = None) -> DataLoader:
    """A loader of the same clips for evaluation: in order, each with its first caption and middle window.

    Args:
        dataset: in place of that of the loader.
    """
    dataset = copy.copy(loader.dataset if dataset is None else dataset)
    dataset.training = False
    vars(dataset).pop("by_corpus", None)  # cached, and holds the training dataset
    return make_loader(
        dataset,
        loader.collate_fn,
        batch_size=loader.batch_sampler.batch_size,
        num_workers=loader.num_workers,
        shuffle=False,
    )

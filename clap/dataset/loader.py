"""From items to batches: Batch, Collate, EpochSampler, and the DataLoader that combines them."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from clap import process_group
from clap.augmentation import Changes, draw_changes, join_captions, join_groups
from clap.config.augmentation_settings import AugmentationSettings
from clap.corpus import Corpus
from clap.dataset.cache import CacheUse
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.frozen_audio import Entry
from clap.dataset.item import Item
from clap.processes import check_batch_size

log = logging.getLogger(__name__)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt
STOP_SECONDS = 30  # after SIGTERM, until a worker ends by itself: torchrun kills its trainer then
START_METHOD = "fork" if sys.platform == "linux" else "spawn"  # of workers; joblib sets another default


@dataclass
class Batch:
    """Clips as `samples` (batch, samples), zero-padded to the longest; lengths (batch,); token ids and mask.

    samples: float32, or int16 if all clips are from a cache; `scale` (batch,) float32 converts int16 to [-1, 1].
    token_ids, token_mask: (batch, tokens).
    clip_ids (batch,): equal for rows that are positives of each other, since they share a clip or all its captions.
    index (batch,): indices in the dataset. is_cached (batch,): whether the samples are from a cache, in 16 bits.
    problems: {index: error} of the clips that were skipped. captions: one for each row, for models with other tokens.
    changes: augmentation of the waveforms, which `to` applies; all other fields are those of the augmented clips.
    cache_use: of the recordings of these rows, if there is a cache.
    mixed_with (batch,): index of the clip that augmentation has added to a row, or of the row's own clip; None without.
    features (batch, width), feature_keys (batch, 2), is_cut (batch,): outputs of a frozen audio encoder, of which clips
    that are not known are NaN, with their `Entry` in its cache; None without a cache. A known clip has no samples.
    """

    samples: Tensor
    scale: Tensor
    lengths: Tensor
    token_ids: Tensor
    token_mask: Tensor
    clip_ids: Tensor
    index: Tensor
    is_cached: Tensor
    problems: dict[int, str] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    changes: Changes | None = None
    cache_use: CacheUse = CacheUse()
    features: Tensor | None = None
    feature_keys: Tensor | None = None
    is_cut: Tensor | None = None
    mixed_with: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def waveform(self) -> Tensor:
        """Float32 (batch, samples) in [-1, 1]."""
        return self.samples if self.samples.is_floating_point() else self.samples.float().mul_(self.scale[:, None])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields with one row for each clip."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def split(self, sizes: Sequence[int]) -> "list[Batch]":
        """Consecutive parts with these numbers of rows, without problems, captions and cache_use."""
        parts = zip(*(tensor.split(sizes) for tensor in self.tensors.values()), strict=True)
        return [Batch(**dict(zip(self.tensors, rows, strict=True))) for rows in parts]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device, in float32 and augmented, without waiting; what the host reads stays on the CPU.

        On the CPU stay lengths, index, mixed_with, is_cached, features and their keys, problems and captions.
        """
        names = ("samples", "scale", "token_ids", "token_mask", "clip_ids")
        non_blocking = torch.device(device).type != "cpu"  # a copy to the CPU could be read before it is complete
        batch = replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})
        if self.changes is None:
            return replace(batch, samples=batch.waveform)
        changes = self.changes.to(device, non_blocking=non_blocking)
        return replace(batch, samples=changes.apply(batch.waveform), changes=None)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; a DataLoader with pin_memory=True calls it."""
        changes = None if self.changes is None else self.changes.pin_memory()
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self.tensors.items()}, changes=changes)


class Collate:
    """Items -> Batch: pads waveforms and token ids to the longest of the batch and skips clips with a problem.

    Args:
        tokenize: captions -> token ids and mask (batch, tokens).
        augmentation: of the clips of training; a worker draws it and tokenises joined captions.
        sample_rate: Hz, for augmentation.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], tuple[Tensor, Tensor]],
        *,
        augmentation: AugmentationSettings | None = None,
        sample_rate: int = 0,
    ) -> None:
        self.tokenize, self.sample_rate = tokenize, sample_rate
        self.augmentation = augmentation or AugmentationSettings()

    def __call__(self, items: Sequence[Item]) -> Batch:
        good = [item for item in items if item.problem is None]
        problems = {item.index: item.problem for item in items if item.problem is not None}
        if not good:
            empty = torch.zeros(0, dtype=torch.long)
            tokens = empty[:, None]
            return Batch(
                torch.zeros(0, 0), empty.float(), empty, tokens, tokens.bool(), empty, empty, empty.bool(), problems
            )
        captions, groups = [item.caption for item in good], [item.group for item in good]
        lengths = [item.length for item in good]
        changes = self.draw_changes(good)
        partner = range(len(good)) if changes is None else changes.partner.tolist()
        captions, groups = join_captions(captions, partner), join_groups(groups, partner)
        token_ids, token_mask = self.tokenize(captions)
        is_cached = [item.samples.dtype == np.int16 for item in good]
        longest = max(len(item.samples) for item in good)
        samples = allocate_samples(len(good), longest, dtype=np.int16 if all(is_cached) else np.float32)
        for row, item in zip(samples.numpy(), good, strict=True):
            length = len(item.samples)
            if all(is_cached):
                row[:length] = item.samples
            else:
                np.multiply(item.samples, item.scale, out=row[:length])
            row[length:] = 0
        return Batch(
            samples=samples,
            scale=torch.from_numpy(np.array([item.scale for item in good], dtype=np.float32)),
            lengths=torch.tensor([max(length, lengths[other]) for length, other in zip(lengths, partner, strict=True)]),
            token_ids=token_ids,
            token_mask=token_mask,
            clip_ids=torch.tensor(groups),
            index=torch.tensor([item.index for item in good]),
            is_cached=torch.tensor(is_cached),
            problems=problems,
            captions=captions,
            changes=changes,
            mixed_with=None if changes is None else torch.tensor([good[other].index for other in partner]),
            cache_use=count_cache_use(good),
            **collate_entries([item.entry for item in good if item.entry is not None]),
        )

    def draw_changes(self, items: Sequence[Item]) -> Changes | None:
        """Draw the augmentation of a batch from the seed of its first clip; None in evaluation, and without any."""
        if items[0].seed is None or not self.augmentation.changes_waveforms:
            return None
        lengths, groups = [len(item.samples) for item in items], [item.group for item in items]
        return draw_changes(
            self.augmentation, items[0].seed, lengths=lengths, groups=groups, sample_rate=self.sample_rate
        )


def count_cache_use(items: Sequence[Item]) -> CacheUse:
    """Hits, misses, and bytes of the samples that were read from a cache."""
    hits = [item.samples.nbytes for item in items if item.is_hit]
    return CacheUse(len(hits), sum(item.is_hit is False for item in items), sum(hits))


def collate_entries(entries: Sequence[Entry]) -> dict[str, Tensor]:
    """Fields of a batch that are of the cache of a frozen audio encoder; empty without one."""
    if not entries:
        return {}
    return {
        "features": torch.from_numpy(np.stack([entry.features for entry in entries])),
        "feature_keys": torch.from_numpy(np.stack([entry.key for entry in entries]).view(np.int64)),
        "is_cut": torch.tensor([entry.is_cut for entry in entries]),
    }


def allocate_samples(*shape: int, dtype: type[np.number]) -> Tensor:
    """Uninitialized tensor in huge pages, which numpy requests and torch does not; shared if in a worker."""
    tensor = torch.from_numpy(np.empty(shape, dtype=dtype))
    return tensor if get_worker_info() is None else tensor.share_memory_()


class EpochSampler(Sampler):
    """Batches of (epoch, index) in an order that depends only on seed and epoch; `seek` sets epoch and first batch.

    Of each batch, a rank yields its part: the parts in the order of the ranks are the batch of a single process. Parts
    of a batch smaller than batch_size differ by one item at most and may be empty.

    Args:
        batch_size: items per batch, over all ranks.
        shuffle: random order without the incomplete last batch; False: in order, and the last batch may be smaller.
        rank, world_size: number of this process, and how many processes share a batch.
        order: epoch -> the order of its items; None: a random permutation.

    Raises:
        ValueError: batch_size is below 1 or not a multiple of world_size.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"dataset.batch_size={batch_size} must be 1 or more")
        check_batch_size(batch_size, world_size)
        self.num_items, self.batch_size = num_items, min(batch_size, num_items)
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.order = order or self.permute
        self.epoch, self.first_batch = 0, 0

    def seek(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        return self.num_items // self.batch_size if self.shuffle else -(-self.num_items // self.batch_size)

    def permute(self, epoch: int) -> np.ndarray:
        """(items,) a random order."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_items)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order(self.epoch) if self.shuffle else np.arange(self.num_items)
        for batch in range(self.first_batch, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            part = np.array_split(chosen, self.world_size)[self.rank]
            yield [(self.epoch, index) for index in part.tolist()]


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; on a GPU, a batch is sent while the GPU computes with the previous one.

    The copies wait in a stream of their own, which a training step that does not wait for the GPU leaves behind.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            batch = batch.to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(copies)
        for tensor in batch.tensors.values():
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory belongs to the other stream
        yield batch


@contextlib.contextmanager
def closing_workers(loader: DataLoader) -> Iterator[None]:
    """End the persistent workers of a loader on exit, after an error too, whose traceback would keep them."""
    try:
        yield
    finally:
        iterator, loader._iterator = getattr(loader, "_iterator", None), None
        if iterator is not None:
            iterator._shutdown_workers()  # as DataLoader does when its iterator is deleted


def open_loader(
    corpus: Corpus,
    kind: str,
    *,
    sample_rate: int,
    window: float | None,
    collate: Collate,
    settings: DatasetSettings,
    seed: int = 0,
    training: bool | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    evaluated: Sequence[Corpus] = (),
) -> DataLoader:
    """DataLoader over a split of a corpus, shuffled in training; see `ClapDataset` and `make_loader`."""
    options = {"sample_rate": sample_rate, "window": window, "seed": seed, "training": training, "settings": settings}
    dataset = ClapDataset(corpus, kind, evaluated=evaluated, **options)
    return make_loader(
        dataset,
        collate,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        persistent_workers=settings.persistent_workers,
        prefetch_factor=settings.prefetch_factor,
        shuffle=dataset.training,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def make_loader(
    dataset: ClapDataset,
    collate: Collate,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    seed: int = 0,
    persistent_workers: bool = True,
    prefetch_factor: int = 2,
    rank: int | None = None,
    world_size: int | None = None,
) -> DataLoader:
    """DataLoader over `dataset`, with its own generator, so that torch's global random state does not change.

    Args:
        batch_size: clips per batch, over all processes.
        persistent_workers: in training, keep the workers between epochs (see `closing_workers`); evaluation starts
            workers each time, which would otherwise wait in memory.
        prefetch_factor: batches that a worker loads in advance.
        rank, world_size: which part of each batch is loaded (see `EpochSampler`). By default, training loads the part
            of this process; evaluation loads every batch, since `embed_split` divides whole batches.

    Raises:
        ValueError: a training batch would have fewer than two clips, or the processes do not divide it.
    """
    if world_size is None:
        rank, world_size = (process_group.rank(), process_group.world_size()) if shuffle else (0, 1)
    if shuffle and min(batch_size, len(dataset)) < 2:
        raise ValueError(
            f"dataset.batch_size={batch_size}, {len(dataset)} training clips: a contrastive batch needs two clips or "
            "more"
        )
    if shuffle and batch_size > len(dataset):
        log.warning(
            "dataset.batch_size=%d is more than the %d training clips, which are one batch", batch_size, len(dataset)
        )
    has_epochs = shuffle and isinstance(dataset, ClapDataset) and dataset.training
    return DataLoader(
        dataset,
        batch_sampler=EpochSampler(
            len(dataset),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank or 0,
            world_size=world_size,
            order=functools.partial(dataset.order_epoch, seed=seed) if has_epochs else None,
        ),
        num_workers=num_workers,
        multiprocessing_context=START_METHOD if num_workers else None,
        collate_fn=collate,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=persistent_workers and shuffle and num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers else None,
    )


def prepare_worker(worker: int) -> None:
    """Leave signals to the trainer, which finishes its step; set up the allocator.

    Ctrl-C reaches every process of a terminal, and torchrun, SLURM and systemd send SIGTERM to all processes of a job.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(STOP_SECONDS))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not those of a forked process
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory for the next clip; new pages from the system cost up to a third of decoding."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 32 * 2**20)  # the maximum
        libc.mallopt(TRIM_THRESHOLD, 2**30)

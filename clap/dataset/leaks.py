"""Leaks: digests of training clips, by which clips of another split that a model was trained on are found.

A clip has digests of two kinds. That of its recording is of the `youtube:ID` or `freesound:NUMBER` that its corpus
states or its name shows. That of its samples is of the size and of 16 KB at fixed places of the encoded file, so that a
copy is found under any name, in any folder or tar, and a re-encoded or cut one is not; `python -m clap check` decodes
the audio for those. Imports no torch.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clap.corpus import Clip, Corpus
from clap.dataset.clip_table import JoinedClips, encode
from clap.dataset.sources import find_sources, list_recordings
from clap.member import Member
from clap.waveform import AudioError

if TYPE_CHECKING:  # imports torch
    from clap.dataset.clips import ClapDataset

BLOCK, PLACES = 4096, 4  # bytes that are read at each of so many places of a file, evenly spaced
MAX_EQUAL = 0.3  # share of one byte value above which it is silence, which many files have in common: read whole
THREADS = 8  # that read files: on a network drive, each waits for a server
CHUNK = 256  # clips of one task of a thread


@dataclass(frozen=True)
class Leaks:
    """Clips of a split that a model was trained on: their indices, ascending, by recording and by samples."""

    by_recording: np.ndarray
    by_samples: np.ndarray

    @property
    def clips(self) -> np.ndarray:
        """Indices of the clips of either kind."""
        return np.union1d(self.by_recording, self.by_samples)

    def describe(self, clips: JoinedClips, *, most: int = 3) -> str:
        """The number of clips of each kind, and the first ones."""
        kinds = {"recording": self.by_recording, "samples": self.by_samples}
        return ", ".join(
            f"{len(found)} by their {kind} ({', '.join(clips[i].id for i in found[:most].tolist())}"
            f"{', ...' if len(found) > most else ''})"
            for kind, found in kinds.items()
            if len(found)
        )


def make_digest(kind: str, content: bytes) -> int:
    """64-bit digest of bytes; equal bytes of two kinds have different ones."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=kind.encode()).digest(), "little")


# Weights of unknown training data, from which a run started: among the digests of its clips.
UNKNOWN = make_digest("unknown", b"")


def digest_samples(corpus: Corpus, clip: Clip) -> int | None:
    """Digest of the audio of a clip; None if its recording cannot be read.

    Of a clip that its corpus renders or stores elsewhere, or whose shard is at an address, it is that of the text that
    identifies it (`Corpus.identify`), such as the seed of a scene; without one, of its corpus and id.
    """
    try:
        if (text := corpus.identify(clip)) is not None:
            return make_digest("identity", encode(text))
        if corpus.loads_recordings and (recording := corpus.locate(clip)) is not None:
            return digest_file(recording)
    except (OSError, AudioError):
        return None
    return make_digest("clip", encode(f"{corpus.name} {clip.id}"))


def digest_file(recording: Path | Member) -> int:
    """Digest of an encoded recording, see the module; OSError if it cannot be read."""
    if isinstance(recording, Member):
        shard, offset = recording.open_shard(), recording.offset
        return digest_bytes(lambda count, start: shard.read(offset + start, count), recording.size)
    descriptor = os.open(recording, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return digest_bytes(lambda count, start: os.pread(descriptor, count, start), os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def digest_bytes(read: Callable[[int, int], bytes], size: int) -> int:
    """Digest of `size` bytes, of which `read(count, start)` returns a part."""
    starts = [place * (size - BLOCK) // (PLACES - 1) for place in range(PLACES)]
    content = read(size, 0) if size <= BLOCK * PLACES else b"".join(read(BLOCK, start) for start in starts)
    if np.bincount(np.frombuffer(content, np.uint8), minlength=1).max() > MAX_EQUAL * len(content):
        content = read(size, 0)
    return make_digest("samples", size.to_bytes(8, "little") + content)


def digest_training_clips(dataset: "ClapDataset", *, is_stopped: Callable[[], bool] = lambda: False) -> np.ndarray:
    """Digests of all clips of a dataset, of both kinds: sorted uint64, without duplicates.

    A clip whose name may show a recording has the digest of that one too: the other side is what decides (see
    `find_leaks`).

    Args:
        is_stopped: called between chunks; once it is true, the rest is skipped.
    """
    names = {name for batch in list_recordings(dataset.clips) for name in batch.to_pylist()}
    samples = digest_all_samples(dataset, is_stopped)
    return np.unique(
        np.concatenate(
            [np.fromiter((make_digest("recording", name) for name in names), np.uint64), samples[samples != 0]]
        )
    )


def digest_all_samples(dataset: "ClapDataset", is_stopped: Callable[[], bool] = lambda: False) -> np.ndarray:
    """Digest of the samples of each clip, uint64 (clips,); 0 if its recording cannot be read."""

    def digest_chunk(first: int) -> list[int]:
        rows = np.arange(first, min(first + CHUNK, len(dataset.clips))) if not is_stopped() else np.zeros(0, np.int64)
        owned = zip(dataset.owners[rows], dataset.clips.select(rows), strict=True)
        return [digest_samples(corpus, clip) or 0 for corpus, clip in owned]

    with ThreadPoolExecutor(THREADS) as threads:
        chunks = threads.map(digest_chunk, range(0, len(dataset.clips), CHUNK))
        return np.fromiter((digest for chunk in chunks for digest in chunk), np.uint64)


def find_leaks(dataset: "ClapDataset", trained: np.ndarray) -> Leaks:
    """The clips of a dataset of which the recording or the samples are among the digests of training clips.

    Args:
        trained: of `digest_training_clips`.
    """
    names = find_sources(dataset.clips)
    known = np.fromiter((0 if name is None else make_digest("recording", encode(name)) for name in names), np.uint64)
    masks = [np.isin(digests, trained) & (digests != 0) for digests in (known, digest_all_samples(dataset))]
    return Leaks(*map(np.flatnonzero, masks))

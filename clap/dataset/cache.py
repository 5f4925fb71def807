"""A disk cache of decoded recordings: mono, at the model's sample rate, in 16 bits."""

import contextlib
import functools
import hashlib
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clap.dataset.eviction import SizeLimit, mark_used
from clap.waveform import LONGEST, Member, TooLongError, check_duration, choose_part, load_waveform

log = logging.getLogger(__name__)

HEADER = 4  # 16-bit words at the start of a file: full scale as float32, number of samples as uint32
MIN_AGE = 2.0  # seconds, the coarsest file system clock: a younger file can change without a new modification time


@dataclass(frozen=True)
class CacheUse:
    """How often recordings were read from a cache (hits) or decoded (misses), and the bytes of samples read from it."""

    hits: int = 0
    misses: int = 0
    bytes: int = 0

    def __add__(self, other: "CacheUse") -> "CacheUse":
        return CacheUse(self.hits + other.hits, self.misses + other.misses, self.bytes + other.bytes)


class WaveformCache:
    """Loads waveforms as `load_waveform` does, from a folder in which each recording is decoded once.

    `samples/` has one file for each content and sample rate, so a changed recording is decoded again, and jobs and
    corpora can share a folder. `known/` has links to these files, named by a hash of a recording's path, size, times
    and inode, so that its content is hashed once; a recording younger than two seconds is hashed every time. Files are
    memory-mapped, so only the requested part is read, and written atomically. If the folder is not writable, recordings
    are decoded every time; the samples are the same.

    Args:
        folder: created if it does not exist; can be deleted at any time.
        gigabytes: limit of its size, above which the least recently used files are removed; None: no limit.
    """

    def __init__(self, folder: str | os.PathLike, gigabytes: float | None = None) -> None:
        self.folder = Path(folder)
        self.limit = SizeLimit(self.folder, None if gigabytes is None else int(gigabytes * 1e9))
        self.is_hit: bool | None = None

    def take_hit(self) -> bool | None:
        """Whether the last load found its recording in the folder; None: there was none since the last call."""
        is_hit, self.is_hit = self.is_hit, None
        return is_hit

    def load(
        self,
        path: str | os.PathLike | Member,
        sample_rate: int,
        *,
        max_duration: float | None = None,
        rng: np.random.Generator | None = None,
        longest: float = LONGEST,
    ) -> np.ndarray:
        """Mono float32 (samples,) at `sample_rate`, rounded to 16 bits; see `load_waveform`."""
        samples, scale = self.load_samples(path, sample_rate, max_duration=max_duration, rng=rng, longest=longest)
        return samples * scale

    def load_samples(
        self,
        path: str | os.PathLike | Member,
        sample_rate: int,
        *,
        max_duration: float | None = None,
        rng: np.random.Generator | None = None,
        longest: float = LONGEST,
    ) -> tuple[np.ndarray, np.float32]:
        """As `load`, but int16 (samples,), memory-mapped if found, and the scale that makes them float32."""
        self.is_hit = False
        try:
            found = self.find_samples(path, sample_rate, longest=longest)
        except TooLongError:  # the required part may be short
            found = None
        if found is None:
            waveform = load_waveform(path, sample_rate, max_duration=max_duration, rng=rng, longest=longest)
            return waveform, np.float32(1)
        samples, scale = found
        start, count = choose_part(len(samples), sample_rate, max_duration, rng)
        check_duration(path, (count - 1) / sample_rate, longest)  # resampling rounds up by a sample at most
        return samples[start : start + count], scale

    def find_samples(
        self, path: str | os.PathLike | Member, sample_rate: int, *, longest: float
    ) -> tuple[np.ndarray, np.float32] | None:
        """All samples of a recording and their scale; None if they cannot be cached.

        Raises:
            AudioError: the recording is invalid (see `load_waveform`).
        """
        now = time.time()
        try:
            identity, changed = read_identity(path)
            link = f"{self.folder}/known/{identity[:2]}/{identity}-{sample_rate}"
            if (found := self.map_hit(link)) is not None:
                return found
            content = hash_file(path)
            file = self.folder / "samples" / content[:2] / f"{content}-{sample_rate}"
            is_old = changed < now - MIN_AGE
            if (found := self.map_hit(file)) is None:
                words = to_words(load_waveform(path, sample_rate, longest=longest))
                if read_identity(path) != (identity, changed) or not (is_old or hash_file(path) == content):
                    return None  # it was replaced in the meantime
                self.write_words(file, words)
                found = from_words(words)
        except OSError:
            return None  # load_waveform raises the error
        if is_old and file.exists():
            with contextlib.suppress(OSError):  # the link exists already, or the file system has no links
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(os.path.relpath(file, os.path.dirname(link)), link)
        return found

    def map_hit(self, file: str | os.PathLike) -> tuple[np.ndarray, np.float32] | None:
        """The samples in a file of the folder and their scale, if it is there and complete."""
        found = map_file(file)
        self.is_hit = found is not None
        return found

    def write_words(self, file: Path, words: np.ndarray) -> None:
        """Write to a temporary file and rename it, so that no process reads a partial file; not above the limit."""
        temporary, is_reserved = file.with_name(f"{uuid.uuid4().hex}.tmp"), False
        try:
            if not (is_reserved := self.limit.reserve(words.nbytes)):
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(words)
            temporary.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if is_reserved:
                self.limit.release(words.nbytes)
            reason = error.strerror or error
            warn_once(f"dataset.cache={self.folder} is not writable ({reason}); recordings are decoded every time")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once in each process: every recording has the same problem."""
    log.warning(message)


def read_identity(path: str | os.PathLike | Member) -> tuple[str, float]:
    """A hash that identifies a recording without reading it, and its last change in seconds since 1970."""
    file, part = (path.local, f" {path.offset} {path.size}") if isinstance(path, Member) else (path, "")
    status = os.stat(file)
    times = (status.st_mtime_ns, status.st_ctime_ns)  # ctime cannot be set, not even by a copy that keeps mtime
    text = f"{os.path.abspath(file)} {status.st_size} {times} {status.st_ino}{part}"
    return hash_bytes(os.fsencode(text)), max(times) / 1e9


def hash_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def hash_file(path: str | os.PathLike | Member) -> str:
    """The hash of a recording's content, read in pieces."""
    with path.open() if isinstance(path, Member) else open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def to_words(waveform: np.ndarray) -> np.ndarray:
    """A waveform (samples,) as the 16-bit words of a file: the header, then the samples."""
    full_scale = max(1.0, np.abs(waveform).max())
    header = np.float32(full_scale).tobytes() + np.uint32(len(waveform)).tobytes()
    samples = (waveform / full_scale * 32767).round().astype(np.int16)
    return np.concatenate([np.frombuffer(header, dtype=np.int16), samples])


def from_words(words: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
    """Int16 (samples,) and their scale from the words of a file; None if it is incomplete."""
    if len(words) < HEADER or len(words) != HEADER + words[2:HEADER].view(np.uint32)[0]:
        return None
    return words[HEADER:], words[:2].view(np.float32)[0] / 32767


def map_file(file: str | os.PathLike) -> tuple[np.ndarray, np.float32] | None:
    """Memory-map int16 (samples,) and return them with their scale; None if the file is missing or incomplete.

    numpy would keep the file open, and a large batch can exceed the limit of open files; torch closes it.
    """
    try:
        status = os.stat(file)
        words = torch.from_file(os.fspath(file), size=status.st_size // 2, dtype=torch.int16).numpy()
    except (OSError, RuntimeError):
        return None
    mark_used(file, status.st_mtime)
    return from_words(words)

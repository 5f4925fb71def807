"""Features on disk by key, in memory-mapped files that several processes read and write at once."""

import os
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from clap.atomic import write_atomic
from clap.dataset.cache import MIN_AGE, warn_once

HEADER = np.dtype([("magic", "S8"), ("width", "<u4"), ("rows", "<u4")])  # of a file; then features, then records
RECORD = np.dtype([("key", "<u8", 2), ("length", "<u4"), ("crc", "<u4"), ("is_cut", "?")])  # of a row
MAGIC, SUFFIX = b"CLAPFEA1", ".features"
ROWS = 4096  # of a file: 13 MB at a width of 768
FLUSH_SECONDS = 60.0  # a killed process loses the rows of this time


@dataclass
class Rows:
    """Rows of a store.

    Args:
        features: (rows, width) float32; a row that is not known is NaN.
        lengths: (rows,) of the inputs, in samples or tokens.
        is_cut: (rows,) whether the input is a part of a longer recording.
    """

    features: np.ndarray
    lengths: np.ndarray
    is_cut: np.ndarray

    @classmethod
    def unknown(cls, count: int, width: int) -> "Rows":
        return cls(np.full((count, width), np.nan, np.float32), np.zeros(count, np.int64), np.zeros(count, bool))

    def set(self, row: int, features: np.ndarray, record: np.void) -> None:
        self.features[row], self.lengths[row], self.is_cut[row] = features, record["length"], record["is_cut"]


@dataclass
class Use:
    """How often features were found or computed, and the seconds of computing."""

    found: int = 0
    computed: int = 0
    seconds: float = 0.0

    @contextmanager
    def computing(self, count: int) -> Iterator[None]:
        """Count features that are computed inside, and the time."""
        start = time.perf_counter()
        yield
        self.computed, self.seconds = self.computed + count, self.seconds + time.perf_counter() - start


class FeatureStore:
    """Float32 rows by 128-bit keys (`make_key`) in a folder.

    A process writes files of its own, atomically; a file grows to ROWS rows, each time replaced by a longer one. Keys
    are kept in sorted arrays: a row costs 16 bytes of memory and no Python object. If a key is missing and the folder
    has changed, new files are read, so that a process finds what others write. A row whose checksum differs is unknown.
    If the folder is not writable, rows are only kept in memory until the next file.

    Args:
        folder: created with the first row; can be deleted while no process uses it.
        width: of a row.
    """

    def __init__(self, folder: str | os.PathLike, width: int) -> None:
        self.folder, self.width = Path(folder), width
        self.changed: int | None = None  # modification time of the folder as it was read, ns
        self.files: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}  # by name: inode, features, records
        self.mapped: list[tuple[int, np.ndarray, np.ndarray]] = []  # the same in the order of `places`
        self.high, self.places = np.empty(0, np.uint64), np.empty((0, 2), np.int32)  # first half of keys; file and row
        self.start_file()

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path, int]]:
        return FeatureStore, (self.folder, self.width)  # a worker that is not a fork maps the files again

    def start_file(self) -> None:
        """Begin a new file of this process."""
        self.name = f"{uuid.uuid4().hex}{SUFFIX}"
        self.pending: dict[bytes, int] = {}  # key -> row
        self.features, self.records = np.empty((ROWS, self.width), np.float32), np.empty(ROWS, RECORD)
        self.num_flushed, self.flush_time = 0, time.monotonic()

    def __len__(self) -> int:
        return len(self.high) + len(self.pending) - self.num_flushed

    @property
    def num_bytes(self) -> int:
        """Size of the rows on disk."""
        return len(self) * (RECORD.itemsize + 4 * self.width)

    def find(self, keys: np.ndarray) -> Rows:
        """The rows of keys (rows, 2) uint64."""
        found, missing = Rows.unknown(len(keys), self.width), []
        for row, key in enumerate(keys):
            if (place := self.pending.get(key.tobytes())) is None:
                missing.append(row)
            else:
                found.set(row, self.features[place], self.records[place])
        missing = self.read_files(keys, found, missing)
        if missing and self.refresh():
            self.read_files(keys, found, missing)
        return found

    def read_files(self, keys: np.ndarray, found: Rows, wanted: Sequence[int]) -> list[int]:
        """Read rows from the known files; returns those of `wanted` that they do not have."""
        if not len(self.high) or not len(wanted):
            return list(wanted)
        missing = []
        places = np.searchsorted(self.high, keys[wanted, 0]).clip(max=len(self.high) - 1)
        for row, (file, place) in zip(wanted, self.places[places].tolist(), strict=True):
            _, features, records = self.mapped[file]
            record = records[place]
            if np.array_equal(record["key"], keys[row]) and zlib.crc32(features[place]) == record["crc"]:
                found.set(row, features[place], record)
            else:
                missing.append(row)
        return missing

    def refresh(self) -> bool:
        """Map new files; False if there are none."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed == self.changed:
                return False
            inodes = {entry.name: entry.inode() for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)}
        except OSError:
            return False  # no process has written yet
        is_settled = changed < time.time_ns() - MIN_AGE * 1e9  # or it could change again without a new time
        self.changed = changed if is_settled else None
        if inodes == {name: inode for name, (inode, _, _) in self.files.items()}:
            return False
        known, self.files = self.files, {}
        for name, inode in inodes.items():
            is_known = name in known and known[name][0] == inode
            if (mapped := known[name] if is_known else self.map_file(name, inode)) is not None:
                self.files[name] = mapped
        self.mapped = list(self.files.values())
        records = [records for _, _, records in self.mapped]
        places = [np.stack([np.full(len(own), file), np.arange(len(own))], axis=1) for file, own in enumerate(records)]
        high = np.concatenate([np.empty(0, np.uint64), *(own["key"][:, 0] for own in records)])
        order = np.argsort(high, kind="stable")
        self.high = high[order]
        self.places = np.concatenate([np.empty((0, 2), np.int32), *places])[order].astype(np.int32)
        return True

    def map_file(self, name: str, inode: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Inode, features and records of a file; None if it is missing or damaged.

        torch closes the file, which numpy would keep open.
        """
        path = self.folder / name
        try:
            content = torch.from_file(os.fspath(path), size=os.stat(path).st_size, dtype=torch.uint8).numpy()
        except (OSError, RuntimeError):
            return None  # replaced by another process
        header = content[: HEADER.itemsize].view(HEADER)[0] if len(content) > HEADER.itemsize else np.zeros((), HEADER)
        rows, end = int(header["rows"]), HEADER.itemsize + int(header["rows"]) * 4 * self.width
        if (header["magic"], header["width"]) != (MAGIC, self.width) or len(content) != end + rows * RECORD.itemsize:
            warn_once(f"{path} is damaged and not used; delete it")
            return None
        features = content[HEADER.itemsize : end].view(np.float32).reshape(rows, self.width)
        return inode, features, content[end:].view(RECORD)

    def add(self, keys: np.ndarray, rows: Rows) -> None:
        """Add rows; those that are not finite and those with a key that this file has are skipped."""
        is_finite = np.isfinite(rows.features).all(axis=1)
        for row, key in enumerate(keys):
            if not is_finite[row] or key.tobytes() in self.pending:
                continue
            place = len(self.pending)
            features = self.features[place]
            features[:] = rows.features[row]
            self.records[place] = (key, rows.lengths[row], zlib.crc32(features), rows.is_cut[row])
            self.pending[key.tobytes()] = place
            if len(self.pending) == ROWS:
                self.flush()
                self.start_file()
        if time.monotonic() > self.flush_time + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are only in memory."""
        self.flush_time, count = time.monotonic(), len(self.pending)
        if count == self.num_flushed:
            return
        header = np.array((MAGIC, self.width, count), HEADER)
        content = b"".join([header.tobytes(), self.features[:count].tobytes(), self.records[:count].tobytes()])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / self.name, content)
        except OSError as error:
            warn_once(f"{self.folder} is not writable ({error}); features are computed again in each run")
            return
        self.num_flushed = count
        self.refresh()


def make_key(*parts: object) -> np.ndarray:
    """128-bit key (2,) uint64 of values with a unique text."""
    digest = blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)

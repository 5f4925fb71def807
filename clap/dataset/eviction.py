"""The size of a cache folder, and the removal of its least recently used files. Imports no torch."""

import array
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import AcquireReturnProxy, FileLock

LOCK, TOTAL = ".lock", "bytes"  # files of a cache folder: its lock, and the size of its samples
LOCK_SECONDS = 60.0  # an eviction of a million files takes a few
POLL_SECONDS = 0.002  # between two attempts; a count takes a tenth of that
KEPT = 0.9  # of the limit remains after an eviction, so that a folder is listed once for each tenth that is written
TOUCH_SECONDS = 600.0  # how exactly the last use of a file is known; a file gets at most one new time in this period
STALE_SECONDS = 3600.0  # after which a temporary file was left by a process that was killed


class SizeLimit:
    """Counts the bytes of a cache folder and evicts the least recently used files of `samples/` above a limit.

    Processes share the count in a file, under a lock that readers do not need; each eviction replaces it by the size
    that it finds. The last use is the modification time, since many file systems record no access times. A file that a
    process has mapped remains valid there after its eviction on a local POSIX file system; NFS invalidates it on other
    machines.

    Args:
        max_bytes: None: count only.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def reserve(self, size: int) -> bool:
        """Count a file of `size` bytes before it is written, and evict others if necessary; False: it does not fit.

        Raises:
            OSError: the files cannot be counted, which a limit requires (see `count`).
        """
        if self.max_bytes is not None and size > self.max_bytes:
            return False
        try:
            self.count(size)
        except OSError:
            if self.max_bytes is not None:
                raise  # else some network file systems, which have no locks, could not be used
        return True

    def count(self, size: int) -> None:
        """Add to the count, and evict files if necessary.

        Raises:
            OSError: the folder is not writable or has no locks, or its lock was not free for a minute.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock():
            total = self.read_total()
            if total is None and self.max_bytes is None:
                return
            total = measure_folder(self.folder) if total is None else total
            if self.max_bytes is not None and total + size > self.max_bytes:
                total = evict(self.folder, min(int(KEPT * self.max_bytes), self.max_bytes - size))
            self.write_total(total + size)

    def release(self, size: int) -> None:
        """Take back a reservation of a file that could not be written."""
        with contextlib.suppress(OSError), self.lock():
            if (total := self.read_total()) is not None:
                self.write_total(max(0, total - size))

    def lock(self) -> AcquireReturnProxy:
        """The lock of the folder; OSError as of `count`."""
        return FileLock(self.folder / LOCK, fallback_to_soft=False).acquire(LOCK_SECONDS, POLL_SECONDS)

    def read_total(self) -> int | None:
        """Bytes of the samples, including reserved ones; None if they were never counted."""
        try:
            return int((self.folder / TOTAL).read_text())
        except (OSError, ValueError):
            return None if (self.folder / "samples").exists() else 0

    def write_total(self, total: int) -> None:
        (self.folder / TOTAL).write_text(str(total))


def mark_used(file: str | os.PathLike, last_use: float) -> None:
    """Set the time of a file that was last used at `last_use`, in seconds since 1970, unless that is recent."""
    if time.time() - last_use > TOUCH_SECONDS:
        with contextlib.suppress(OSError):  # of another user, or evicted
            os.utime(file)


def measure_folder(folder: Path) -> int:
    """Bytes of the files in `samples/`."""
    return sum(status.st_size for _, status in list_files(folder / "samples"))


def evict(folder: Path, target: int) -> int:
    """Remove the least recently used files until at most `target` bytes remain; returns the bytes that remain.

    Files that are being written are not removed, nor counted as removable; those of killed processes are. The folder is
    listed twice, since a list of the names of a million files would need more memory than a worker has.
    """
    times, sizes, total = array.array("q"), array.array("q"), 0
    for path, status in list_files(folder / "samples"):
        total += status.st_size
        if not path.endswith(".tmp"):
            times.append(status.st_mtime_ns)
            sizes.append(status.st_size)
    newest = find_newest_evicted(np.asarray(times), np.asarray(sizes), total - target)
    stale = time.time() - STALE_SECONDS
    for path, status in list_files(folder / "samples"):
        is_old = status.st_mtime < stale if path.endswith(".tmp") else total > target and status.st_mtime_ns <= newest
        if is_old:
            with contextlib.suppress(OSError):  # of another user, or removed by one
                os.unlink(path)
                total -= status.st_size
    remove_dangling_links(folder / "known")
    return total


def find_newest_evicted(times: np.ndarray, sizes: np.ndarray, excess: int) -> int:
    """Time of the newest of the oldest files that together have `excess` bytes; times and sizes (files,) int64."""
    if excess <= 0 or not len(times):
        return -1
    order = np.argsort(times, kind="stable")
    count = int(np.searchsorted(np.cumsum(sizes[order]), excess))
    return int(times[order[min(count, len(order) - 1)]])


def remove_dangling_links(folder: Path) -> None:
    """Remove the links to evicted files."""
    for path in list_paths(folder):
        if not os.path.exists(path):
            with contextlib.suppress(OSError):
                os.unlink(path)


def list_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of the files in the subfolders of a folder; files that disappear meanwhile are skipped."""
    for path in list_paths(folder):
        with contextlib.suppress(OSError):
            yield path, os.lstat(path)


def list_paths(folder: Path) -> Iterator[str]:
    """Paths in the subfolders of a folder, one subfolder in memory at a time."""
    for subfolder in os.listdir(folder) if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            yield from [entry.path for entry in os.scandir(folder / subfolder)]

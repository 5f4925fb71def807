"""A bounded folder of shards that are fetched from http, s3 and other addresses. Imports no torch."""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from filelock import FileLock

from clap.config.secrets import hide_secrets
from clap.fetch import MAX_ATTEMPTS, MAX_WAIT, WAIT, FetchError, fetch

log = logging.getLogger(__name__)

GIGABYTE = 1e9
MARK_SECONDS = 10.0  # how exactly the last use of a shard is known
IN_USE_SECONDS = 60.0  # after its last use, a shard may still be read
RETRY_SECONDS = 600.0  # after which a shard that could not be fetched is requested again
LOCAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)  # which no retry changes


class ShardCache:
    """Local copies of remote shards, shared by the processes of this machine.

    A shard is fetched by one process, for which the others wait, and gets its name when it is complete; a killed
    download over http resumes. When the copies exceed the limit, those that were not used for the longest time are
    removed, but none that was used in the last minute. What is at an address must not change.

    Args:
        folder: created if it does not exist; can be deleted when no process uses it.
        gigabytes: of the copies; more if more are in use.
    """

    def __init__(self, folder: str | os.PathLike, gigabytes: float) -> None:
        self.folder, self.limit = Path(folder), gigabytes * GIGABYTE
        if not gigabytes > 0:
            raise ValueError(f"shard_cache_gigabytes={gigabytes} must be above 0; set dataset.shard_cache_gigabytes")
        self.marked: dict[Path, float] = {}
        self.failures: dict[str, tuple[float, str]] = {}

    def path(self, address: str) -> Path:
        """Where the copy of a shard is, or will be."""
        name = Path(urlsplit(address).path).name or "shard.tar"
        return self.folder / hashlib.sha256(address.encode()).hexdigest()[:16] / name

    def fetch(self, address: str) -> Path:
        """The copy of a shard, which is fetched if it is missing.

        Raises:
            FetchError: the shard cannot be fetched; the message has address and reason.
            OSError: it cannot be stored.
        """
        path = self.path(address)
        if not path.is_file():
            when, reason = self.failures.get(address, (-RETRY_SECONDS, ""))
            if time.monotonic() - when < RETRY_SECONDS:
                raise FetchError(reason)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(path.with_name("lock")):
                    if not path.is_file():
                        download(address, path)
            except FetchError as error:
                self.failures[address] = time.monotonic(), str(error)
                raise
            self.mark(path)
            self.remove_oldest()
        elif time.monotonic() - self.marked.get(path, -MARK_SECONDS) >= MARK_SECONDS:
            self.mark(path)
        return path

    def mark(self, path: Path) -> None:
        """Record that a copy is used now."""
        with contextlib.suppress(OSError):  # removed by another process
            path.with_name("used").touch()
        self.marked[path] = time.monotonic()

    def remove_oldest(self) -> None:
        """Remove copies, the least recently used first, until the others are within the limit; not those in use."""
        with FileLock(self.folder / "lock"):
            copies = sorted(self.list_copies())
            excess = sum(size for _, size, _ in copies) - self.limit
            for used, size, path in copies:
                if excess > 0 and used < time.time() - IN_USE_SECONDS:
                    log.info("removed %s, dataset.shard_cache_gigabytes=%g", path, self.limit / GIGABYTE)
                    path.unlink(missing_ok=True)
                    excess -= size

    def list_copies(self) -> Iterator[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of each complete copy."""
        for used in self.folder.glob("*/used"):
            for path in used.parent.iterdir():
                if path.name not in ("used", "lock") and path.suffix not in (".part", ".version"):
                    with contextlib.suppress(OSError):  # removed by another process
                        yield used.stat().st_mtime, path.stat().st_size, path


def download(address: str, path: Path) -> None:
    """Store the file at an address; FetchError if its server does not send it."""
    if address.startswith(("http://", "https://")):
        fetch(address, path)
        return
    part = path.with_name(f"{path.name}.part")
    with_retries(address, lambda: copy_remote(address, part))
    os.replace(part, path)


def copy_remote(address: str, part: Path) -> None:
    with fsspec.open(address, "rb") as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)


def with_retries(address: str, call: Callable[[], None]) -> None:
    """Call until no error is raised, MAX_ATTEMPTS times at most; the clients of stores have errors of their own."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            return call()
        except ImportError as error:
            raise ValueError(f"{hide_secrets(address)}: {error}; install the package, or fetch the shards") from None
        except Exception as error:
            reason = hide_secrets(str(error)) or type(error).__name__
            if isinstance(error, (*LOCAL_ERRORS, ValueError)) or attempt == MAX_ATTEMPTS - 1:
                raise FetchError(f"{hide_secrets(address)}: not downloaded ({reason})") from None
            time.sleep(min(WAIT * 2**attempt, MAX_WAIT))

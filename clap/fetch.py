"""Downloads a file from its server atomically; resumes after lost connections and kills."""

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

import requests
from tqdm import tqdm

from clap.config.secrets import hide_secrets
from clap.progress import progress_bar

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 2**16  # bytes; a lost connection loses at most this
MAX_ATTEMPTS = 5  # requests in a row without a new byte
RETRY_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505}  # HTTP statuses that may pass
WAIT = 1.0  # seconds before a retry, doubled each time
MAX_WAIT = 120.0  # seconds
MAX_SIZE = 64e9  # bytes, more than any file of the corpora and published checkpoints


class FetchError(OSError):
    """A file cannot be downloaded; the message names address and reason."""


class Interrupted(FetchError):
    """The download was stopped; received bytes are kept."""


def fetch(
    address: str,
    path: Path,
    *,
    checksum: str = "",
    max_size: float = MAX_SIZE,
    stop: threading.Event | None = None,
) -> None:
    """Download the file at an address to `path` unless it exists.

    Received bytes are in PATH.part and the version of the server's file in PATH.version: a later call resumes if the
    version is still the same. Only one process at a time may download to a path.

    Args:
        checksum: `md5:...` or `sha256:...` of the whole file.
        max_size: bytes; a larger file is not downloaded.
        stop: set by another thread to stop the download.

    Raises:
        FetchError: the server does not have the file or cannot be reached, the file is too large, or its checksum
            differs.
        OSError: the file cannot be written, or does not fit on the disk.
    """
    if path.exists() and (not checksum or matches_checksum(path, checksum)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = PartialFile(path, hide_secrets(address), trusted=bool(checksum), max_size=max_size)
    stop = stop or threading.Event()
    try:
        fetch_with_retries(address, part, stop)
        if checksum:
            part.verify(checksum)
        part.finish()
    except FetchError:
        raise
    except OSError as error:
        advice = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "fix the cause"
        raise OSError(
            f"{part.path}: not written ({error.strerror}); {advice} and run again, received bytes are kept"
        ) from error


class PartialFile:
    """The received bytes of a file, and the version of the server's file that they belong to.

    Args:
        source: its address, without passwords.
        trusted: whether a checksum will be verified, so that a part of unknown version may be resumed.
        max_size: bytes.
    """

    def __init__(self, path: Path, source: str, *, trusted: bool, max_size: float) -> None:
        self.target, self.source, self.trusted, self.max_size = path, source, trusted, max_size
        self.path, self.version = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def stored_version(self) -> str:
        """Version of the server's file; empty if the server sent none."""
        return self.version.read_text() if self.version.exists() else ""

    def headers(self) -> dict[str, str]:
        """Headers of a request for the missing bytes."""
        version = self.stored_version
        if not self.size or not (version or self.trusted):
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": version} if version else {})

    def restart(self, answer: requests.Response) -> None:
        """Discard the part and store the version of an answer; in this order, a kill never mixes two versions."""
        self.delete()
        self.version.write_text(read_file_version(answer))

    def has_version_of(self, answer: requests.Response) -> bool:
        """Whether an answer has the version of the part; True if one of the versions is unknown."""
        version, own = read_file_version(answer), self.stored_version
        return not (version and own) or version == own

    def check_size(self, size: int) -> None:
        """Check the length that the server states, or the number of bytes received so far.

        Raises:
            FetchError: it is above the limit. OSError: the disk has too little space.
        """
        if size > self.max_size:
            raise FetchError(
                f"{self.source}: not downloaded (larger than {self.max_size / 1e9:g} GB); if it is the published file, "
                "raise max_gigabytes"
            )
        free = shutil.disk_usage(self.path.parent).free
        if size - self.size > free:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def verify(self, checksum: str) -> None:
        """Verify the checksum of the whole file; a wrong file is deleted."""
        if not matches_checksum(self.path, checksum):
            self.delete()
            kind, _, wanted = checksum.partition(":")
            raise FetchError(f"{self.source}: not the published file, its {kind} is not {wanted}; deleted")

    def finish(self) -> None:
        os.replace(self.path, self.target)
        self.version.unlink(missing_ok=True)


def read_file_version(answer: requests.Response) -> str:
    """Version of the server's file: a strong ETag, or else Last-Modified."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def matches_checksum(path: Path, checksum: str) -> bool:
    """Compare a file with `md5:...` or `sha256:...`."""
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def fetch_with_retries(address: str, part: PartialFile, stop: threading.Event) -> None:
    """Send requests until the whole file is received; each received byte resets the number of attempts."""
    failures = 0
    while True:
        if stop.is_set():
            raise Interrupted(f"{part.source}: interrupted, {part.path} is kept")
        before = part.size
        try:
            fetch_rest(address, part, stop)
            return
        except requests.RequestException as error:
            answer = error.response
            if isinstance(error, ValueError) or (answer is not None and answer.status_code not in RETRY_STATUSES):
                reason = summarize_request_error(error)  # ValueError: the address is not a URL
                raise FetchError(f"{part.source}: not downloaded ({reason})") from None
            failures = 1 if part.size > before else failures + 1
            if failures >= MAX_ATTEMPTS:
                raise FetchError(
                    f"{part.source}: not downloaded ({summarize_request_error(error)}, {failures} times)"
                ) from None
            stop.wait(min(max(WAIT * 2 ** (failures - 1), read_retry_after(answer)), MAX_WAIT))


def fetch_rest(address: str, part: PartialFile, stop: threading.Event) -> None:
    """Send one request for the missing bytes and append them as they arrive."""
    headers = {"Accept-Encoding": "identity"} | part.headers()
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        received, first, total = part.size, *parse_content_range(answer)
        if answer.status_code == 416 and received == total:  # killed after the last byte
            return
        if answer.status_code == 416 or (
            answer.status_code == 206 and (first != received or not part.has_version_of(answer))
        ):
            part.delete()
            raise requests.ConnectionError("the server's file has changed")
        answer.raise_for_status()
        if answer.status_code != 206:
            part.restart(answer)
        part.check_size(total or 0)
        limit = part.max_size if total is None else total
        with part.path.open("ab") as file, make_progress_bar(part, total) as bar:
            for chunk in answer.iter_content(CHUNK):
                if stop.is_set():
                    raise Interrupted(f"{part.source}: interrupted, {part.path} is kept")
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > limit:
                    break
    if part.size > limit:
        size = part.size
        part.delete()
        part.check_size(size)
        raise requests.ConnectionError(f"received more than {total} bytes")
    if total is not None and part.size != total:
        raise requests.ConnectionError(f"received {part.size} of {total} bytes")


def parse_content_range(answer: requests.Response) -> tuple[int, int | None]:
    """Position of an answer's first byte in the file, and the length of the file if known."""
    content = answer.headers.get("Content-Range", "").removeprefix("bytes ")  # FIRST-LAST/TOTAL or */TOTAL
    if content:
        span, _, total = content.partition("/")
        first = span.partition("-")[0]
        return int(first) if first.isdecimal() else 0, int(total) if total.isdecimal() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() and "Content-Encoding" not in answer.headers else None


def make_progress_bar(part: PartialFile, total: int | None) -> tqdm:
    return progress_bar(total=total, initial=part.size, desc=part.target.name, unit="B", unit_scale=True, leave=False)


def summarize_request_error(error: requests.RequestException) -> str:
    """A short reason from the innermost of the nested exceptions of requests."""
    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer for {TIMEOUT:g} s"
    return hide_secrets(str(error).rpartition(": ")[2].strip("'\")(")) or type(error).__name__


def read_retry_after(answer: requests.Response | None) -> float:
    """Seconds to wait as requested by the server's Retry-After header."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return float(asked) if asked.isdecimal() else 0.0

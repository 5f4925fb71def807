"""A file from its server, whole or not at all: goes on where it stopped, through cut connections and kills."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import requests
from tqdm import tqdm

TIMEOUT = 30.0  # seconds that a server may be silent
CHUNK = 2**16  # bytes; what a cut connection may lose
MAX_ATTEMPTS = 5  # requests in a row that bring nothing
RETRY_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505}  # statuses after which it is worth asking again
WAIT = 1.0  # seconds before asking again, doubled each time
MAX_WAIT = 120.0  # seconds


class FetchError(OSError):
    """A file that its server does not give; the message names address and reason."""


class Interrupted(FetchError):
    """Asked to stop; what has arrived is kept."""


def fetch(address: str, path: Path, *, checksum: str = "", stop: threading.Event | None = None) -> None:
    """Write the file of an address to `path`, if it is not there.

    What has arrived lies in PATH.part, and the version that the server gave it in PATH.version: a later call goes on
    from there if the server's file is still the same. One process at a time.

    Args:
        checksum: `md5:...` or `sha256:...` of the whole file.
        stop: set by another thread to end this early.

    Raises:
        FetchError: no such file, no connection, or one that keeps breaking; another content than the checksum says.
        OSError: it cannot be written.
    """
    if path.exists() and (not checksum or matches_checksum(path, checksum)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part, stop = PartialFile(path, trusted=bool(checksum)), stop or threading.Event()
    try:
        fetch_with_retries(address, part, stop)
        if checksum:
            part.verify(address, checksum)
        part.finish()
    except FetchError:
        raise
    except OSError as error:
        advice = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
        raise OSError(
            f"{part.path}: not written ({error.strerror}); {advice} and start again, what has arrived is kept"
        ) from error


class PartialFile:
    """What has arrived of a file, and the version that it is a part of.

    Args:
        trusted: a checksum will be compared, so a part may be continued without knowing its version.
    """

    def __init__(self, path: Path, *, trusted: bool) -> None:
        self.target, self.trusted = path, trusted
        self.path, self.version = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def stored_version(self) -> str:
        """That of the server's file, if it told one."""
        return self.version.read_text() if self.version.exists() else ""

    def headers(self) -> dict[str, str]:
        """Of a request for what is still missing."""
        version = self.stored_version
        if not self.size or not (version or self.trusted):
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": version} if version else {})

    def restart(self, answer: requests.Response) -> None:
        """Begin anew with an answer's version; in this order a kill never leaves a part under another's version."""
        self.delete()
        self.version.write_text(read_file_version(answer))

    def has_version_of(self, answer: requests.Response) -> bool:
        """Does an answer go on with the version that the part is of, as far as both tell it?"""
        version, own = read_file_version(answer), self.stored_version
        return not (version and own) or version == own

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def verify(self, address: str, checksum: str) -> None:
        """Compare the whole with a checksum; what is wrong is taken away."""
        if not matches_checksum(self.path, checksum):
            self.delete()
            kind, _, wanted = checksum.partition(":")
            raise FetchError(f"{address}: another file than was published, its {kind} is not {wanted}; nothing is kept")

    def finish(self) -> None:
        os.replace(self.path, self.target)
        self.version.unlink(missing_ok=True)


def read_file_version(answer: requests.Response) -> str:
    """What tells a server's file from a later one: a strong ETag, or else the time of its last change."""
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
    """Ask until the whole file has arrived; every byte that does gives new patience."""
    failures = 0
    while True:
        if stop.is_set():
            raise Interrupted(f"{address}: interrupted, {part.path} is kept")
        before = part.size
        try:
            fetch_rest(address, part, stop)
            return
        except requests.RequestException as error:
            answer = error.response
            if isinstance(error, ValueError) or (answer is not None and answer.status_code not in RETRY_STATUSES):
                reason = summarize_request_error(error)  # ValueError: the address is none
                raise FetchError(f"{address}: not downloaded ({reason})") from None
            failures = 1 if part.size > before else failures + 1
            if failures >= MAX_ATTEMPTS:
                raise FetchError(
                    f"{address}: not downloaded ({summarize_request_error(error)}, {failures} times)"
                ) from None
            stop.wait(min(max(WAIT * 2 ** (failures - 1), read_retry_after(answer)), MAX_WAIT))


def fetch_rest(address: str, part: PartialFile, stop: threading.Event) -> None:
    """Ask once for what is missing, and write it as it comes."""
    headers = {"Accept-Encoding": "identity"} | part.headers()
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        there, first, total = part.size, *parse_content_range(answer)
        if answer.status_code == 416 and there == total:  # killed after the last byte
            return
        if answer.status_code == 416 or (
            answer.status_code == 206 and (first != there or not part.has_version_of(answer))
        ):
            part.delete()
            raise requests.ConnectionError("the server has another file than before")
        answer.raise_for_status()
        if answer.status_code != 206:
            part.restart(answer)
        with part.path.open("ab") as file, make_progress_bar(part, total) as bar:
            for chunk in answer.iter_content(CHUNK):
                if stop.is_set():
                    raise Interrupted(f"{address}: interrupted, {part.path} is kept")
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.size != total:
        raise requests.ConnectionError(f"{part.size} of {total} bytes arrived")


def parse_content_range(answer: requests.Response) -> tuple[int, int | None]:
    """First byte of an answer's body in the file, and the file's length if it is told."""
    content = answer.headers.get("Content-Range", "").removeprefix("bytes ")  # FIRST-LAST/TOTAL or */TOTAL
    if content:
        span, _, total = content.partition("/")
        first = span.partition("-")[0]
        return int(first) if first.isdecimal() else 0, int(total) if total.isdecimal() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() and "Content-Encoding" not in answer.headers else None


def make_progress_bar(part: PartialFile, total: int | None) -> tqdm:
    return tqdm(
        total=total, initial=part.size, desc=part.target.name, unit="B", unit_scale=True, disable=None, leave=False
    )


def summarize_request_error(error: requests.RequestException) -> str:
    """What went wrong, in the few words at the bottom of the library's nested exceptions."""
    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer for {TIMEOUT:g} s"
    return str(error).rpartition(": ")[2].strip("'\")(") or type(error).__name__


def read_retry_after(answer: requests.Response | None) -> float:
    """Seconds that a busy server asks to be left alone."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return float(asked) if asked.isdecimal() else 0.0

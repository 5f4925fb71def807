"""Atomic writes of JSON and other files."""

import errno
import glob
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # suffix of a file that is being written
STALE_SECONDS = 60.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if the file does not exist or is truncated, as after a system crash."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, (json.dumps(values, indent=2, default=str) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically, through a temporary file.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(content)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`, which it replaces if the `with` block ends without an error.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    remove_partial_files(path.parent, name=path.name)
    try:
        with name_file(path, kept="; an existing file is unchanged"):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def name_file(path: Path, *, kept: str = "") -> Iterator[None]:
    """Name the file in an error of writing it; that of a full disk has no name.

    Raises:
        OSError: the file is not written.
    """
    try:
        yield
    except Exception as error:  # safetensors, tokenizers and torch.save have their own types
        found = find_os_error(error)
        if found is None and not is_full_disk(error):
            raise
        reason = (found and found.strerror) or str(error).partition(" (os error")[0]
        raise OSError(f"{path}: not written ({reason}){kept}") from error


def find_os_error(error: BaseException | None) -> OSError | None:
    """The OSError with a number that an exception is or was raised from; None if there is none."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception was raised because a disk or quota is full."""
    found = find_os_error(error)
    return "No space left on device" in str(error) or (found is not None and found.errno in FULL)


def remove_partial_files(folder: Path, *, name: str) -> None:
    """Remove what killed writers of a file have left: files that nothing has been written to for a minute."""
    for path in folder.glob(f"{glob.escape(name)}.*{PARTIAL}"):
        with suppress(FileNotFoundError):  # removed by another process
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink()


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append an entry to a JSON Lines file, on a line of its own also after a truncated one."""
    with name_file(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        separator = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(separator + json.dumps(values).encode() + b"\n")


def read_json_lines(path: Path) -> Iterator[dict]:
    """Entries of a JSON Lines file, such as metrics.jsonl or download.jsonl, in order; a truncated line is skipped."""
    for line in Path(path).read_text(encoding="utf-8").split("\n"):  # JSON strings may contain other separators
        with suppress(json.JSONDecodeError):  # truncated by a kill; the resumed run writes the step again
            yield json.loads(line)

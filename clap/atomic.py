"""Atomic writes of JSON and other files."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


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
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: not written ({error.strerror}); an existing file is unchanged") from error


def read_json_lines(path: Path) -> Iterator[dict]:
    """Entries of a JSON Lines file, such as metrics.jsonl or download.jsonl, in order; a truncated line is skipped."""
    for line in Path(path).read_text(encoding="utf-8").split("\n"):  # JSON strings may contain other separators
        with suppress(json.JSONDecodeError):  # truncated by a kill; the resumed run writes the step again
            yield json.loads(line)

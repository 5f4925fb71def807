"""JSON and other files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if there is none, or one that a crash of the machine cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_atomic(path, (json.dumps(values, indent=2, default=str) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: not written ({error.strerror}); what was there before is untouched") from error


def read_json_lines(path: Path) -> Iterator[dict]:
    """Lines of metrics.jsonl as they were written, {"step": int, "time": seconds, "metrics": {name: value}}."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # cut short by a kill; the resumed run wrote the step again
            yield json.loads(line)

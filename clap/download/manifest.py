"""What became of each clip of a corpus: a line of JSON each in download.jsonl, which survives a kill."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clap.atomic import read_json_lines, write_atomic

MANIFEST_NAME = "download.jsonl"


@dataclass(frozen=True)
class Status:
    """A clip that is there, is to be tried again, or is gone for good.

    Args:
        path: relative to the corpus's folder.
        size: bytes, of a clip that is there.
        origin: the address that it came from.
        reason: why it is not there, or what is odd about it.
    """

    path: str
    status: Literal["here", "failed", "gone"]
    size: int | None = None
    origin: str | None = None
    reason: str | None = None


class Manifest:
    """The statuses of a corpus's clips by path; the last one that was added for a path counts."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / MANIFEST_NAME
        entries = list(read_json_lines(self.path)) if self.path.exists() else []
        self.statuses = {entry["path"]: Status(**entry) for entry in entries}
        if entries and not self.path.read_bytes().endswith(b"\n"):
            self.compact()  # a line that a kill cut short must not join with the next

    def __getitem__(self, path: Path) -> Status | None:
        return self.statuses.get(self.relative_path(path))

    def relative_path(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def add(self, statuses: Iterable[Status]) -> None:
        """Append lines, so that a kill loses none that were written."""
        statuses = list(statuses)
        self.statuses |= {status.path: status for status in statuses}
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(to_json_lines(statuses))

    def is_intact(self, path: Path) -> bool:
        """Is a file there, with the size that it had when it was written?"""
        known = self[path]
        return path.is_file() and (known is None or known.size in (None, path.stat().st_size))

    def compact(self) -> None:
        """One line for each path, in order."""
        content = "".join(to_json_lines(self.statuses[path] for path in sorted(self.statuses)))
        if content:
            write_atomic(self.path, content.encode())


def to_json_lines(statuses: Iterable[Status]) -> Iterator[str]:
    for status in statuses:
        entry = {key: value for key, value in asdict(status).items() if value is not None}
        yield json.dumps(entry) + "\n"  # ASCII: no kill can cut a character, no name end a line

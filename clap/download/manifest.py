"""The status of each clip of a corpus, one line of JSON per clip in download.jsonl, which survives a kill."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clap.atomic import read_json_lines, write_atomic

MANIFEST_NAME = "download.jsonl"


@dataclass(frozen=True)
class Status:
    """The status of a clip: present, failed temporarily, or permanently unavailable.

    Args:
        path: relative to the folder of the corpus.
        size: bytes, for a clip that is present.
        origin: address that it was downloaded from, without passwords.
        reason: why it is missing, or how it differs from what was requested.
    """

    path: str
    status: Literal["here", "failed", "gone"]
    size: int | None = None
    origin: str | None = None
    reason: str | None = None


class Manifest:
    """Statuses of the clips of a corpus by path; a later status of a path replaces an earlier one."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / MANIFEST_NAME
        entries = list(read_json_lines(self.path)) if self.path.exists() else []
        self.statuses = {entry["path"]: Status(**entry) for entry in entries}
        if entries and not self.path.read_bytes().endswith(b"\n"):
            self.compact()  # new lines must not be appended to a truncated one

    def __getitem__(self, path: Path) -> Status | None:
        return self.statuses.get(self.relative_path(path))

    def relative_path(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def add(self, statuses: Iterable[Status]) -> None:
        """Append statuses, so that a kill loses none of the lines written before."""
        statuses = list(statuses)
        self.statuses |= {status.path: status for status in statuses}
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(to_json_lines(statuses))

    def is_intact(self, path: Path) -> bool:
        """Whether a file exists and has the size that is recorded for it."""
        known = self[path]
        return path.is_file() and (known is None or known.size in (None, path.stat().st_size))

    def compact(self) -> None:
        """Rewrite the file with one line per path, sorted."""
        content = "".join(to_json_lines(self.statuses[path] for path in sorted(self.statuses)))
        if content:
            write_atomic(self.path, content.encode())


def to_json_lines(statuses: Iterable[Status]) -> Iterator[str]:
    for status in statuses:
        entry = {key: value for key, value in asdict(status).items() if value is not None}
        yield (
            json.dumps(entry) + "\n"
        )  # ASCII: a kill cannot truncate a character, and a name cannot contain a line break

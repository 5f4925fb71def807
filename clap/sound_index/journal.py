"""What an unfinished run of `index` has done: it is only appended to, so that a kill loses the last batch at most."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from clap.atomic import append_json_line, name_file, read_json_lines
from clap.sound_index.vectors import COLUMNS


@dataclass(frozen=True)
class FileResult:
    """A file that was indexed, or could not be read.

    Args:
        path: relative to the folder.
        size, mtime_ns: bytes and modification time before it was read.
        duration, sample_rate, channels: seconds, Hz and number.
        windows: (start, end) of each window in seconds.
        error: why it cannot be read; such a file has no windows.
    """

    path: str
    size: int
    mtime_ns: int
    duration: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    windows: Sequence[tuple[float, float]] = ()
    error: str | None = None

    @property
    def version(self) -> tuple[int, int]:
        """What changes when the file does."""
        return self.size, self.mtime_ns


class Journal:
    """Results of an unfinished run, in two files of the index.

    Args:
        index: folder of the index.
        embed_dim: width of the embeddings.
    """

    def __init__(self, index: Path, embed_dim: int) -> None:
        self.lines, self.rows, self.embed_dim = index / "unfinished.jsonl", index / "unfinished.f32", embed_dim
        self.files: list[FileResult] = []
        self.num_rows = 0
        self.read()

    def read(self) -> None:
        """Read the complete batches, and cut off an incomplete one."""
        num_bytes = self.rows.stat().st_size if self.rows.exists() else 0
        for batch in read_json_lines(self.lines) if self.lines.exists() else ():
            if batch["num_rows"] * self.row_bytes > num_bytes:
                break  # lost by a crash of the machine
            self.files += [FileResult(**file) for file in batch["files"]]
            self.num_rows = batch["num_rows"]
        if num_bytes > self.num_rows * self.row_bytes:
            os.truncate(self.rows, self.num_rows * self.row_bytes)

    @property
    def row_bytes(self) -> int:
        return 4 * self.embed_dim

    def append(self, files: Sequence[FileResult], embeddings: np.ndarray) -> None:
        """Add files and the embeddings of their windows (n, embed_dim), the rows first."""
        with name_file(self.rows), self.rows.open("ab") as file:
            file.write(np.ascontiguousarray(embeddings, np.float32).tobytes())
        num_rows = self.num_rows + len(embeddings)
        append_json_line(self.lines, {"num_rows": num_rows, "files": [asdict(file) for file in files]})
        self.files += files
        self.num_rows = num_rows

    def map_rows(self) -> np.ndarray:
        """Embeddings (num_rows, embed_dim)."""
        if not self.num_rows:
            return np.empty((0, self.embed_dim), np.float32)
        return np.memmap(self.rows, np.float32, mode="r", shape=(self.num_rows, self.embed_dim))

    def make_facts(self) -> pa.Table:
        """The COLUMNS of all rows."""
        rows = [
            (file.path, *window, file.duration, file.sample_rate, file.channels, file.size, file.mtime_ns)
            for file in self.files
            for window in file.windows
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, COLUMNS, strict=True)], COLUMNS)

    def delete(self) -> None:
        for path in (self.lines, self.rows):
            path.unlink(missing_ok=True)

"""Search an index of recordings by embedding."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
import pyarrow as pa

from clap.sound_index.record import IndexRecord
from clap.sound_index.vectors import TABLE, open_table

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**16  # rows of the matrix that are read at once


@dataclass(frozen=True)
class Match:
    """A recording, or the part of a long one, that was found.

    Args:
        path: of the file.
        score: cosine similarity.
        start, end: seconds of the window in the file; 0 and its duration for a short file.
    """

    path: str
    score: float
    start: float
    end: float


class SoundIndex:
    """An index that `python -m clap index` has written, open for search. Imports no torch.

    Args:
        record: what it was made from.
        facts: a row for each window, in order of path and start.
        vectors: embeddings (windows, embed_dim) float32, unit norm, usually mapped from disk.
    """

    def __init__(self, record: IndexRecord, facts: pa.Table, vectors: np.ndarray) -> None:
        self.record, self.facts, self.vectors = record, facts, vectors
        self.paths = facts["path"].combine_chunks().dictionary_encode()
        codes = self.paths.indices.to_numpy()
        self.first = np.flatnonzero(np.diff(codes, prepend=-1))  # first row of each file
        self.times = np.stack([facts["start"].to_numpy(), facts["end"].to_numpy()], axis=1)  # (windows, 2)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "SoundIndex":
        """Open an index for search.

        Raises:
            FileNotFoundError: there is no index, or it is not complete. ValueError: it has no recordings.
        """
        folder = Path(folder)
        record = IndexRecord.read(folder)
        if not (folder / TABLE).exists():
            raise FileNotFoundError(
                f"{folder} is not complete; finish it with the `python -m clap index` that began it"
            )
        facts, vectors = open_table(folder, record.embed_dim)
        if not len(facts):
            raise ValueError(f"{folder} has no recordings: none could be read, see its errors.jsonl; index other files")
        return cls(record, facts, vectors)

    @property
    def num_files(self) -> int:
        return len(self.first)

    def search(self, query_embedding: Union["Tensor", np.ndarray], top: int = 10, *, per_file: int = 1) -> list[Match]:
        """The recordings that are most similar to an embedding (embed_dim,), best first.

        Args:
            top: number of matches.
            per_file: most matches of one file; their windows do not overlap.

        Raises:
            ValueError: the embedding has another width, or is not finite, or a number is below 1.
        """
        if min(top, per_file) < 1:
            raise ValueError(f"top={top}, per_file={per_file} are not both 1 or more; change them")
        is_tensor = hasattr(query_embedding, "detach")
        query = query_embedding.detach().float().cpu().numpy() if is_tensor else np.asarray(query_embedding, np.float32)
        if query.shape != self.vectors.shape[1:] or not np.isfinite(query).all():
            raise ValueError(
                f"the query has shape {query.shape}; give finite numbers ({self.vectors.shape[1]},), as of one row of "
                "Clap.get_text_embeddings with the model of the index"
            )
        scores = self.score(query / max(float(np.linalg.norm(query)), 1e-12))
        best = np.maximum.reduceat(scores, self.first)
        files = np.argsort(-best, kind="stable")[:top] if len(best) <= top else choose_top(best, top)
        rows = [row for file in files for row in self.choose_windows(scores, file, per_file)]
        rows = sorted(rows, key=lambda row: (-scores[row], row))[:top]
        return [self.make_match(row, scores[row]) for row in rows]

    def score(self, query: np.ndarray) -> np.ndarray:
        """Cosine similarity of each window, (windows,)."""
        scores = np.empty(len(self.vectors), np.float32)
        for start in range(0, len(scores), BLOCK):
            np.matmul(self.vectors[start : start + BLOCK], query, out=scores[start : start + BLOCK])
        return scores

    def choose_windows(self, scores: np.ndarray, file: int, count: int) -> list[int]:
        """Rows of the best windows of a file that do not overlap, best first."""
        end = self.first[file + 1] if file + 1 < len(self.first) else len(scores)
        rows, chosen = np.arange(self.first[file], end), []
        while len(rows) and len(chosen) < count:
            best = rows[np.argmax(scores[rows])]
            chosen.append(int(best))
            start, stop = self.times[best]
            rows = rows[(self.times[rows, 0] >= stop) | (self.times[rows, 1] <= start)]
        return chosen

    def make_match(self, row: int, score: float) -> Match:
        path = os.path.join(self.record.folder, self.paths[row].as_py())
        return Match(path, float(score), *map(float, self.times[row]))


def choose_top(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the highest values, best first; of equal ones the first."""
    border = -np.partition(-values, count - 1)[count - 1]
    candidates = np.flatnonzero(values >= border)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]

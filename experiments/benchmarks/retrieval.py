"""Time and memory of retrieval metrics: python experiments/benchmarks/retrieval.py

Embeddings are random, of unit norm and 1,024 dimensions, with five captions a clip as in Clotho, in mapped files of a
temporary folder. Two tables:

- All metrics of both directions for 1,045 clips by 5,225 captions (the Clotho evaluation split) and for growing
  galleries: seconds, time of a pair of clip and caption, and peak memory beyond the mapped files (Linux: RssAnon).
  Where the similarity matrix fits, the same ranks from it by argsort, in the same process; the ranks are compared.
- 100,000 clips by 500,000 captions (2.5 GB of files): the first blocks are counted, and the time of all is
  extrapolated from them. The other seconds, which are measured, check the embeddings and score the relevant pairs.

--small is a quick check of the script. Seconds do not transfer to other machines.

Two CPU cores, two threads, nothing else running, torch 2.11:

    clips    captions   seconds   ns a pair   memory, MB   seconds by sorting   ratio
    1,045    5,225        0.106       19.49            3                0.358    0.30
    2,048    10,240       0.233       11.11            0                2.136    0.11
    4,096    20,480       0.791        9.43            0               10.186    0.08
    8,192    40,960       3.119        9.30            0
    16,384   81,920      11.800        8.79            0
    100,000  500,000  7 minutes        8.29           89       extrapolated from 2,000 of 191,492 blocks
"""

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor

from clap.evaluation import ranks
from clap.evaluation.ranks import BLOCK_SIZE, retrieval_ranks, score_blocks
from clap.evaluation.retrieval_metrics import retrieval_metrics, retrieval_scores
from clap.text_table import to_markdown

CAPTIONS = 5  # of a clip
LARGEST_MATRIX = 1e8  # pairs: 0.4 GB of cosines, and 0.8 GB for each order


@dataclass(frozen=True)
class Sizes:
    """Numbers of clips of both tables, dimensions, and the blocks of the largest gallery that are counted."""

    clips: int
    dim: int
    growing: tuple[int, ...]
    largest: int
    part: int
    repeats: int


FULL = Sizes(1045, 1024, (2048, 4096, 8192, 16384), 100_000, 2000, 3)
SMALL = Sizes(40, 16, (520,), 2_000, 3, 1)


class PeakMemory:
    """Highest memory of the process that no file backs, in bytes, from a thread that reads it every few ms."""

    def __init__(self) -> None:
        self.bytes = 0
        self.ended = threading.Event()

    def watch(self) -> None:
        while not self.ended.wait(0.005):
            self.bytes = max(self.bytes, read_memory())


def read_memory() -> int:
    """Anonymous memory of this process in bytes; 0 where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@contextmanager
def measure_memory() -> Iterator[PeakMemory]:
    peak = PeakMemory()
    thread = threading.Thread(target=peak.watch)
    thread.start()
    try:
        yield peak
    finally:
        peak.ended.set()
        thread.join()


def time_call(call: Callable[[], object], *, repeats: int) -> float:
    """Seconds of the fastest call."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def write_embeddings(path: Path, count: int, dim: int, *, seed: int) -> np.ndarray:
    """A mapped file of random vectors (count, dim) of unit norm, written in parts."""
    rng = np.random.default_rng(seed)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for start in range(0, count, 16 * BLOCK_SIZE):
        part = rng.standard_normal((min(16 * BLOCK_SIZE, count - start), dim), dtype=np.float32)
        rows[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    rows.flush()
    del rows
    return np.load(path, mmap_mode="r")


def rank_by_sorting(audio: Tensor, text: Tensor, pair_clips: Tensor) -> tuple[Tensor, Tensor]:
    """Both ranks of every pair from the whole similarity matrix, each list sorted; every text has one clip."""
    similarity = audio @ text.T  # (clips, texts)
    texts = torch.arange(len(text))
    places = torch.empty_like(similarity, dtype=torch.int64)
    by_clip = similarity.argsort(dim=0, descending=True)
    places.scatter_(0, by_clip, torch.arange(len(audio))[:, None].expand_as(by_clip))
    text_to_audio = places[pair_clips, texts] + 1
    by_text = similarity.argsort(dim=1, descending=True)
    places.scatter_(1, by_text, texts.expand_as(by_text))
    return text_to_audio, places[pair_clips, texts] + 1


def compute_all(audio: Tensor | np.ndarray, text: Tensor | np.ndarray, pair_clips: Tensor) -> None:
    """Ranks, metrics and per-query scores, as the evaluator computes them."""
    found = retrieval_ranks(audio, text, pair_clips)
    retrieval_metrics(found)
    retrieval_scores(found)


def compare_with_sorting(folder: Path, clips: int, sizes: Sizes) -> list[str]:
    """A row for a gallery: clips, captions, seconds, ns a pair, memory, seconds by sorting and their ratio."""
    audio = write_embeddings(folder / "audio.npy", clips, sizes.dim, seed=0)
    text = write_embeddings(folder / "text.npy", clips * CAPTIONS, sizes.dim, seed=1)
    pair_clips = torch.arange(len(text)) // CAPTIONS
    pairs = len(audio) * len(text)
    repeats = sizes.repeats if pairs < LARGEST_MATRIX else 1
    before = read_memory()
    with measure_memory() as peak:
        seconds = time_call(lambda: compute_all(audio, text, pair_clips), repeats=repeats)
    row = [f"{clips:,}", f"{len(text):,}", f"{seconds:.3f}", f"{1e9 * seconds / pairs:.2f}"]
    row.append(f"{max(peak.bytes - before, 0) / 1e6:.0f}")
    if pairs > LARGEST_MATRIX:
        return [*row, "does not fit", ""]
    whole = [torch.from_numpy(np.array(rows)) for rows in (audio, text)]
    sorting = time_call(lambda: rank_by_sorting(*whole, pair_clips), repeats=sizes.repeats)
    counted = retrieval_ranks(audio, text, pair_clips)
    both = (counted.text_to_audio, counted.audio_to_text)
    for found, expected in zip(both, rank_by_sorting(*whole, pair_clips), strict=True):
        # The whole matrix may round the last bit differently, which swaps two neighbours.
        assert (found - expected).abs().max() <= 1 and (found == expected).double().mean() > 0.999
    return [*row, f"{sorting:.3f}", f"{seconds / sorting:.2f}"]


class PartOfBlocks:
    """The first blocks of `score_blocks`, in its place, and the seconds until they are counted."""

    def __init__(self, count: int) -> None:
        self.count, self.seconds = count, 0.0

    def __call__(self, *arguments: object) -> Iterator[tuple[int, int, Tensor]]:
        start = time.perf_counter()
        yield from itertools.islice(score_blocks(*arguments), self.count)
        self.seconds = time.perf_counter() - start


def rank_part(folder: Path, sizes: Sizes) -> list[str]:
    """A row for the largest gallery, of which all but a part of the blocks is skipped."""
    audio = write_embeddings(folder / "audio.npy", sizes.largest, sizes.dim, seed=0)
    text = write_embeddings(folder / "text.npy", sizes.largest * CAPTIONS, sizes.dim, seed=1)
    pair_clips = torch.arange(len(text)) // CAPTIONS
    part = PartOfBlocks(sizes.part)
    before = read_memory()
    ranks.score_blocks = part
    start = time.perf_counter()
    with measure_memory() as peak:
        compute_all(audio, text, pair_clips)
    other = time.perf_counter() - start - part.seconds
    ranks.score_blocks = score_blocks
    blocks = ranks.count_blocks(audio) * ranks.count_blocks(text)
    pair = part.seconds / sizes.part / BLOCK_SIZE**2
    minutes = (other + part.seconds / sizes.part * blocks) / 60
    row = [
        f"{len(audio):,}",
        f"{len(text):,}",
        f"{sizes.part:,} of {blocks:,}",
        f"{part.seconds:.1f}",
        f"{1e9 * pair:.2f}",
    ]
    return [*row, f"{other:.1f}", f"{(peak.bytes - before) / 1e6:.0f}", f"{minutes:.1f} (extrapolated)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick check of the script")
    sizes = SMALL if parser.parse_args().small else FULL
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, blocks of {BLOCK_SIZE}\n")
    header = ["clips", "captions", "seconds", "ns a pair", "memory, MB", "seconds by sorting", "ratio"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("All metrics of both directions, from mapped files\n")
        rows = []
        for clips in (sizes.clips, *sizes.growing):
            rows.append(compare_with_sorting(folder, clips, sizes))
            print(f"{clips:,} clips: {rows[-1][2]} s", file=sys.stderr)
        print(to_markdown([header, *rows], 0))
        print("A part of the blocks of the largest gallery\n")
        header = [
            "clips",
            "captions",
            "blocks",
            "seconds",
            "ns a pair",
            "other seconds",
            "memory, MB",
            "minutes of all",
        ]
        print(to_markdown([header, rank_part(folder, sizes)], 0))


if __name__ == "__main__":
    main()

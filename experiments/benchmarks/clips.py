"""Memory and time of the data at the start of a training with many clips: python experiments/benchmarks/clips.py

Writes recordings of one second, hard-linked under as many names as there are clips, and a CSV with a caption each. A
new process then opens the data twice, first without a kept index: the corpus, its splits and their digests, captions
for a byte-level BPE, and the first two batches of two workers. Prints one Markdown table. Seconds begin after the
imports, and the memory of a worker is private (USS), less that of a worker with a hundred clips. The parent's peak is
its resident memory, with imports and mapped files. CHECKOUT=FOLDER measures the code in another folder.

Measured on two cores of an AMD EPYC (Zen 4): three million clips without other load, the lists of clips of the code
before columns under a load of 7 to 15, so that their seconds are several times those of an idle machine.

| code | clips | start | seconds | parent, MB | its imports | worker above its imports |
|---|--:|---|--:|--:|--:|--:|
| lists of clips | 100,000 | first | 25.6 | 835 | 612 | 9 |
| lists of clips | 100,000 | second | 25.0 | 838 | 612 | 7 |
| columns | 3,000,000 | first | 106.8 | 1467 | 689 | 22 |
| columns | 3,000,000 | second | 9.1 | 1257 | 689 | 34 |
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.environ.get("CHECKOUT", str(Path(__file__).resolve().parents[2])))

import psutil
import soundfile

from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.csv import CSV
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.loader import Collate, make_loader
from clap.dataset.registry import find_splits
from clap.dataset.synthetic import Synthetic
from clap.tokenizer import Tokenizer
from clap.training.comparison import digest_dataset

RATE, MOST_LINKS, FOLDER_SIZE, NUM_EVALUATED, WORKERS = 16_000, 50_000, 30_000, 32, 2
STARTS = ("ba", "do", "ka", "lu", "mi", "re", "so", "tu")
ENDS = ("n", "r", "st", "ll", "mp", "ck", "th", "ng", "sh", "nd", "lk", "rt", "ss", "ft", "x", "ve", "ze", "de")
WORDS = [start + end for start in STARTS for end in ENDS]


def write_corpus(folder: Path, num_clips: int) -> Path:
    """The index of a corpus of linked recordings, which are written unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    num_recordings = -(-num_clips // MOST_LINKS) + 1
    scenes = Synthetic(num_train=num_recordings, num_val=0, num_test=0)
    recordings = []
    for number, clip in enumerate(scenes.clips("train")):
        recordings.append(folder / f"scene{number}.wav")
        soundfile.write(recordings[-1], scenes.load(clip, sample_rate=RATE, max_duration=1.0), RATE)
    rng = random.Random(0)
    with (folder / "clips.csv").open("w") as index:
        index.write("path,caption,split\n")
        for number in range(num_clips):
            name = f"{number // FOLDER_SIZE:04}/{number:08}.wav"
            path = folder / name
            if number % FOLDER_SIZE == 0:
                path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.hardlink_to(recordings[number // MOST_LINKS])
            split = {0: "val", 1: "test"}.get(number // NUM_EVALUATED, "train")
            index.write(f"{name},{' '.join(rng.choices(WORDS, k=10))},{split}\n")
    return folder / "clips.csv"


def measure_start(index: str) -> dict[str, float]:
    """Open the data as a training does: seconds, and bytes of this process and of its largest worker."""
    began = time.perf_counter()
    corpus, settings = CSV(Path(index).parent, index), DatasetSettings(batch_size=16, num_workers=WORKERS)
    find_splits(corpus)
    tokenizer = Tokenizer("train", vocab_size=1000)
    datasets = [ClapDataset(corpus, kind, sample_rate=RATE, window=1.0, settings=settings) for kind in SPLITS]
    for dataset in datasets:
        digest_dataset(dataset)
        _ = dataset.digest
    train = datasets[0]
    for use in (tokenizer.train, tokenizer.cache_captions):
        use(train.clips.captions if hasattr(train.clips, "captions") else train.captions)  # of earlier versions: a list
    loader = make_loader(train, Collate(tokenizer), batch_size=16, num_workers=WORKERS, shuffle=True)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    seconds = time.perf_counter() - began
    worker = max(child.memory_full_info().uss for child in psutil.Process().children())
    return {"seconds": seconds, "parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "worker": worker}


def run(index: Path) -> dict[str, float]:
    """`measure_start` in a new process."""
    command = [sys.executable, __file__, "--measure", str(index)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=300_000)
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/benchmark_clips"), help="on a disk with hard links"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure_start(args.measure)))
        return
    few = run(write_corpus(args.folder.resolve() / "few", 100 + 2 * NUM_EVALUATED))
    index = write_corpus(args.folder.resolve() / str(args.clips), args.clips)
    for path in (*index.parent.glob(".clips.csv.clips.arrow"), *index.parent.glob(".clips.csv.clips.found")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print("| clips | start | seconds | parent, MB | its imports | worker above its imports |")
    print("|--:|---|--:|--:|--:|--:|")
    for name in ("first", "second"):
        start = run(index)
        memory = (start["parent"], few["parent"], start["worker"] - few["worker"])
        print(f"| {args.clips:,} | {name} | {start['seconds']:.1f} |", *(f"{size / 1e6:.0f} |" for size in memory))


if __name__ == "__main__":
    main()

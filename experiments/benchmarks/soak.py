"""Memory, files and threads of a long training: python experiments/benchmarks/soak.py [--steps 2000]

Runs train.py with a tiny model and two workers, which validates and saves after each of twenty epochs and tracks to
MLflow, and looks at its processes from outside, forty times. Prints one Markdown table in three minutes, or in eleven
on a busy machine. Memory is resident memory, in which the shared part of each worker counts again. Files that a worker
has open change with the batches that wait, which are shared through files.

The last column is the slope of a line through the second half of the samples. It is `flat` if the line changes by less
than TOLERANCE of the mean, or by less than one file or thread, else it falls or grows. The store is `linear` if its
growth in the second and in the third quarter of the steps differs by at most LINEAR.

2,000 steps on two cores of an Intel Xeon, under load from other processes:

| at step | 50 | 550 | 1050 | 1500 | 2000 | |
|---|--:|--:|--:|--:|--:|---|
| memory, MB | 1010 | 1025 | 1023 | 1024 | 1024 | flat, +0.18 per 1,000 steps |
| memory of workers, MB | 1250 | 1250 | 1250 | 1250 | 1250 | flat, +0.00 per 1,000 steps |
| open files | 27 | 35 | 28 | 28 | 28 | flat, +0.72 per 1,000 steps |
| open files of workers | 68 | 62 | 60 | 36 | 36 | falls, -2.56 per 1,000 steps |
| threads | 6 | 6 | 6 | 6 | 6 | flat, +0.00 per 1,000 steps |
| threads of workers | 6 | 6 | 6 | 6 | 6 | flat, +0.00 per 1,000 steps |
| MLflow store, kB | 956 | 1072 | 1172 | 1268 | 1380 | linear, +211.91 per 1,000 steps |
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, WORKERS, BATCH_SIZE = 40, 2, 4
TOLERANCE, LINEAR = 0.02, 0.25
TINY = (  # a training with about 20 steps per second on one core
    "audio_encoder=cnn14_nano",
    "audio_encoder.frontend.window=1.0",
    "text_encoder=gpt2_nano",
    "dataset.num_val=64",
    f"dataset.batch_size={BATCH_SIZE}",
    f"dataset.num_workers={WORKERS}",
)


def run(folder: Path, steps: int) -> Iterator[dict[str, float]]:
    """Train for a number of steps, and yield samples at equal distances."""
    epochs = 20
    options = [f"dataset.num_train={BATCH_SIZE * (steps // epochs)}", f"trainer.max_epochs={epochs}"]
    options += [f"hydra.run.dir={folder / 'run'}", f"tracking.uri={folder / 'mlflow.db'}"]
    command = [sys.executable, "train.py", *TINY, *options]
    with open(folder / "output", "w") as output:
        process = psutil.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    sampled = 0
    while process.poll() is None:
        time.sleep(0.02)
        step = read_step(folder / "run" / "metrics.jsonl")
        if step >= sampled + steps / SAMPLES and (found := sample(process, folder)):
            sampled = step
            yield {"step": step, **found}
    if process.returncode:
        sys.exit((folder / "output").read_text())


def read_step(history: Path) -> int:
    """The latest step whose loss is in metrics.jsonl."""
    if not history.exists():
        return 0
    lines = [json.loads(line) for line in history.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return max((line["step"] for line in lines if "train/loss" in line["metrics"]), default=0)


def sample(process: psutil.Process, folder: Path) -> dict[str, float] | None:
    """Name -> value; None while a validation has started workers of its own."""
    try:
        workers = process.children()
        if len(workers) != WORKERS:
            return None
        return {
            "memory, MB": process.memory_info().rss / 2**20,
            "memory of workers, MB": sum(worker.memory_info().rss for worker in workers) / 2**20,
            "open files": process.num_fds(),
            "open files of workers": sum(worker.num_fds() for worker in workers),
            "threads": process.num_threads(),
            "threads of workers": sum(worker.num_threads() for worker in workers),
            "MLflow store, kB": sum(path.stat().st_size for path in folder.glob("mlflow.db*")) / 2**10,
        }
    except psutil.NoSuchProcess:
        return None


def judge(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """`flat`, `falls` or `GROWS`, of the store `linear` or `NOT LINEAR`, and the growth per 1,000 steps."""
    quarter, half = len(values) // 4, len(values) // 2
    slope = statistics.linear_regression(steps[half:], values[half:]).slope
    if name.startswith("MLflow"):
        first, second = values[half] - values[quarter], values[half + quarter] - values[half]
        verdict = "linear" if abs(second - first) <= LINEAR * max(first, second) else "NOT LINEAR"
    else:
        change = slope * (steps[-1] - steps[half])
        limit = TOLERANCE * statistics.mean(values) if "MB" in name else 1.0
        verdict = "flat" if abs(change) < limit else "GROWS" if change > 0 else "falls"
    return f"{verdict}, {1000 * slope:+.2f} per 1,000 steps"


def print_table(samples: Sequence[Mapping[str, float]]) -> None:
    chosen = [samples[round(part * (len(samples) - 1))] for part in (0, 0.25, 0.5, 0.75, 1)]
    print(f"| at step | {' | '.join(str(entry['step']) for entry in chosen)} | |")
    print(f"|---|{'--:|' * len(chosen)}---|")
    for name in list(samples[0])[1:]:
        verdict = judge(name, [entry["step"] for entry in samples], [entry[name] for entry in samples])
        print(f"| {name} | {' | '.join(f'{entry[name]:.0f}' for entry in chosen)} | {verdict} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of the training (default: 2000)")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        print_table(list(run(Path(folder), steps)))


if __name__ == "__main__":
    main()

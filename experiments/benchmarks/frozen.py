"""What a cache of frozen encoders saves: python experiments/benchmarks/frozen.py

HTS-AT tiny and RoBERTa base with random weights, saved once as a checkpoint, whose encoders stay frozen: only the
projections train. Recordings are ten seconds of noise and tones in FLAC at 44.1 kHz, each with a caption of its own, a
tenth as many for validation and for the test. The commands are those of a user:

    python train.py init_from=CHECKPOINT 'freeze=[audio_encoder,text_encoder]' trainer.cache_frozen=true ...
    python train.py -m loss=symmetric_cross_entropy,sigmoid seed=0,1,2 ...

An epoch is measured from one validation to the next, with its own validation and the checkpoints. `training` is its
part without these. A job of the study is measured from its composed config to its record of success, with building the
model, reading the checkpoint, the epochs, the test and MLflow. The study starts with an empty cache. --small is a quick
check of the script with tiny models. Seconds do not transfer to other machines.

Measured on two cores without other load, 992 clips in batches of 32:

| epoch | training, s | with validation and checkpoints, s |
|--:|--:|--:|
| 1 | 114.19 | 129.28 |
| 2 | 1.65 | 4.24 |
| 3 | 0.44 | 2.98 |

What remains of an epoch is mostly the checkpoint of 620 MB. The six jobs of the study took 184.1, 25.3, 27.1, 26.7,
28.1 and 27.5 s, together 1.73 times the first.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import soundfile
import torch

from clap.config.compose import compose_config
from clap.dataset.scenes.planning import SHORTEST_SCENE
from clap.dataset.synthetic import Synthetic
from clap.model import Clap
from experiments.benchmarks.steps import FULL, SMALL

ROOT = Path(__file__).resolve().parents[2]
FILE_RATE = 44_100  # Hz
FROZEN = ("freeze=[audio_encoder,text_encoder]", "optimizer.warmup_steps=1")
STUDY = ("loss=symmetric_cross_entropy,sigmoid", "seed=0,1,2")


def write_recordings(folder: Path, num_clips: int, *, duration: float) -> Path:
    """Recordings of `duration` seconds, and their CSV with the captions of synthetic scenes and a number."""
    counts = {"train": num_clips, "val": max(num_clips // 10, 2), "test": max(num_clips // 10, 2)}
    corpus = Synthetic(**{f"num_{split}": count for split, count in counts.items()}, max_duration=SHORTEST_SCENE)
    rng, time = np.random.default_rng(0), np.arange(round(duration * FILE_RATE)) / FILE_RATE
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "split"])
        for split in counts:
            for clip in corpus.clips(split):
                waveform = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 5000) * time) + 0.02 * rng.normal(size=len(time))
                soundfile.write(folder / f"{clip.id}.flac", waveform, FILE_RATE)
                writer.writerow([f"{clip.id}.flac", f"{clip.captions[0]}, number {clip.id}", split])
    return folder / "clips.csv"


def write_checkpoint(folder: Path, metadata: Path, *, small: bool) -> None:
    torch.manual_seed(0)
    clap = Clap.from_config(compose_config(SMALL if small else FULL))
    with metadata.open() as file:
        clap.tokenizer.train([row["caption"] for row in csv.DictReader(file)])
    folder.mkdir()
    clap.save(folder)


def run(arguments: list[str], log: Path) -> None:
    """Run train.py; its output goes to a file."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        command = [sys.executable, "train.py", *arguments]
        if subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, env=environment, check=False).returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")


def read_epochs(folder: Path) -> list[tuple[float, float]]:
    """For each epoch of a run, clips/s of its training steps, and the seconds of the whole epoch."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["metrics"]["train/clips_per_second"] for entry in entries if "train/loss" in entry["metrics"]]
    ends = [entry["time"] for entry in entries if any(name.startswith("val/") for name in entry["metrics"])]
    whole = [json.loads((folder / "cost.json").read_text())["seconds"] - (ends[-1] - ends[0])]
    whole += [end - start for start, end in zip(ends, ends[1:], strict=False)]
    return list(zip(steps, whole, strict=True))


def measure_jobs(folder: Path) -> list[float]:
    """Seconds of each job of a sweep, in their order."""
    spans = []
    for job in folder.glob("*/job.json"):
        spans.append(((job.parent / ".hydra" / "overrides.yaml").stat().st_mtime, job.stat().st_mtime))
    return [end - start for start, end in sorted(spans)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000, help="training clips")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    parser.add_argument("--small", action="store_true", help="tiny models and 32 clips")
    options = parser.parse_args()
    num_clips = 32 if options.small else options.clips
    batch_size = min(32, num_clips)
    with tempfile.TemporaryDirectory(prefix="frozen-") as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        metadata = write_recordings(folder / "clips", num_clips, duration=3.0 if options.small else 10.0)
        write_checkpoint(folder / "source", metadata, small=options.small)
        shared = [
            f"init_from={folder / 'source'}",
            *("dataset=csv", f"dataset.root={folder / 'clips'}", f"dataset.metadata={metadata}"),
            f"dataset.batch_size={batch_size}",
            f"trainer.max_epochs={options.epochs}",
            f"trainer.log_every={num_clips // batch_size}",
            f"tracking.uri={folder / 'mlflow.db'}",
            *FROZEN,
        ]
        single = [*shared, f"trainer.cache_frozen={folder / 'single'}", f"hydra.run.dir={folder / 'run'}"]
        run(single, folder / "run.log")
        clips = num_clips // batch_size * batch_size
        print(f"{clips} clips an epoch, {torch.get_num_threads()} threads\n")
        print("| epoch | training, s | with validation and checkpoints, s |\n|--:|--:|--:|")
        for number, (speed, whole) in enumerate(read_epochs(folder / "run"), start=1):
            print(f"| {number} | {clips / speed:.2f} | {whole:.2f} |", flush=True)
        study = [*shared, f"trainer.cache_frozen={folder / 'study'}", f"hydra.sweep.dir={folder / 'sweep'}"]
        run(["-m", *study, *STUDY], folder / "sweep.log")
        jobs = measure_jobs(folder / "sweep")
        print("\n| job | s |\n|--:|--:|")
        print("\n".join(f"| {number} | {seconds:.1f} |" for number, seconds in enumerate(jobs, start=1)))
        print(f"\nall jobs / first job: {sum(jobs) / jobs[0]:.2f}")


if __name__ == "__main__":
    main()

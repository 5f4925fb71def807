"""Overhead of tracking at 20 training steps per second: python experiments/benchmarks/tracking.py [--uri URI]

Prints one Markdown table in a minute. The first rows simulate 2,000 steps without computation: a tracker with MLflow
and one without, which only writes metrics.jsonl, alternately log the same values every ten steps. Calls that a training
makes every ten seconds (sending values, sampling system metrics) are made by the number of steps instead. Sampling runs
in its own thread in a training, but is counted in full here. The next row is the overhead once per run, and the last
row a real, tiny training with that thread: time in calls of the tracker as a share of the total. Wall time delays the
training; processor time hardly depends on the load of the machine.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from hydra.utils import instantiate
from torch import nn

from clap.config.build import build
from clap.config.compose import compose_config
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import make_loader
from clap.model import Clap
from clap.tracking import tracker as tracking
from clap.tracking.store import SystemMetricsMonitor
from clap.tracking.tracker import Tracker
from clap.training.trainer import ClapTrainer

STEPS, STEPS_PER_SECOND, LOG_EVERY = 2000, 20, 10
INTERVAL = LOG_EVERY / STEPS_PER_SECOND  # seconds between two logged steps
PERIOD = round(10 / INTERVAL)  # intervals between two flushes, and between two samples of system metrics
VALUES = {"train/loss": 1.25, "train/clips_per_second": 640.0, "train/learning_rate": 5e-4, "train/logit_scale": 14.3}
TINY = (  # a training with about 20 steps per second on one core
    "audio_encoder=cnn14_nano",
    "audio_encoder.frontend.window=1.0",
    "text_encoder=gpt2_nano",
    "dataset.batch_size=4",
    "dataset.num_train=1600",
    "dataset.num_val=64",
)


@dataclass
class Seconds:
    """Wall and processor time of calls in this process."""

    wall: float = 0.0
    processor: float = 0.0

    def add(self, call: Callable[..., object], *args: object) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        call(*args)
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor


@dataclass
class Pair:
    """Time of the same calls with MLflow (on) and without (off)."""

    on: Seconds
    off: Seconds

    @classmethod
    def new(cls) -> "Pair":
        return cls(Seconds(), Seconds())

    def __add__(self, other: "Pair") -> "Pair":
        sides = ((self.on, other.on), (self.off, other.off))
        return Pair(*(Seconds(a.wall + b.wall, a.processor + b.processor) for a, b in sides))

    def print_row(self, name: str, *, count: float = 1, of: float = math.nan) -> None:
        """Print milliseconds per item of `count`, their ratio, and the difference as a share of `of` seconds."""
        columns = [self.on.wall, self.off.wall, self.on.processor, self.off.processor]
        ratio = f"{self.on.wall / self.off.wall:.1f}" if self.off.wall else "-"
        shares = [(self.on.wall - self.off.wall) / count / of, (self.on.processor - self.off.processor) / count / of]
        shares = ["-" if math.isnan(share) else f"{share:.3%}" for share in shares]
        print(f"| {name} | {' | '.join(f'{1000 * x / count:.2f}' for x in columns)} | {ratio} | {' | '.join(shares)} |")


class TimedTracker:
    """The methods of a tracker that a trainer calls, timed."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.run_id, self.seconds = tracker, tracker.run_id, Seconds()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.seconds.add(self.tracker.log_metrics, metrics, step)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self.seconds.add(self.tracker.set_tags, tags)

    def flush(self) -> None:
        self.seconds.add(self.tracker.flush)


def start(uri: str | None, folder: Path, config: Mapping = MappingProxyType({})) -> Tracker:
    """Start a run as before the first training step."""
    tracker = Tracker(uri, "benchmark", run_name=folder.name, run_dir=folder)
    tracker.log_params(config)
    tracker.log_dataset("synthetic", digest="0", split="train")
    return tracker


def compare_intervals(on: Tracker, off: Tracker) -> None:
    """Alternately log steps with both trackers, and make the calls of every ten seconds."""
    flush_seconds, tracking.FLUSH_SECONDS = tracking.FLUSH_SECONDS, math.inf  # flush by the number of steps instead
    monitor = SystemMetricsMonitor(on.run_id, tracking_uri=on.uri)
    intervals = STEPS // LOG_EVERY
    for interval in range(-2 * PERIOD, intervals):  # the first intervals are a warm-up
        if interval in (-2 * PERIOD, 0):
            logged, flushed, sampled = Pair.new(), Pair.new(), Pair.new()
        step = LOG_EVERY * (interval + 2 * PERIOD)
        sides = [(logged.on, flushed.on, on), (logged.off, flushed.off, off)]
        for log_time, flush_time, tracker in sides[:: 1 if interval % 2 else -1]:
            log_time.add(tracker.log_metrics, VALUES, step)
            if interval % PERIOD == PERIOD - 1:
                flush_time.add(tracker.flush)
        if interval % PERIOD == PERIOD - 1:
            sampled.on.add(sample, monitor, on)
    tracking.FLUSH_SECONDS = flush_seconds
    logged.print_row("values logged, per interval", count=intervals, of=INTERVAL)
    flushed.print_row("values sent, per interval", count=intervals, of=INTERVAL)
    sampled.print_row("system metrics, per interval", count=intervals, of=INTERVAL)
    (logged + flushed + sampled).print_row("**all, per interval**", count=intervals, of=INTERVAL)


def sample(monitor: SystemMetricsMonitor, tracker: Tracker) -> None:
    """One iteration of the loop in MLflow's sampling thread."""
    monitor.collect_metrics()
    tracker._client.get_run(tracker.run_id)
    monitor.publish_metrics(monitor.aggregate_metrics())


def train(tracker: Tracker, folder: Path) -> None:
    """A tiny training with all tracking of `train.py`."""
    config, timed, seconds = compose_config(list(TINY)), TimedTracker(tracker), Seconds()
    torch.manual_seed(0)
    clap = Clap.from_config(config)
    loaders = [
        make_loader(
            ClapDataset(config=config, kind=kind, window=clap.window),
            clap.collate,
            batch_size=config["dataset"]["batch_size"],
            num_workers=1,
            shuffle=kind == "train",
        )
        for kind in ("train", "val")
    ]
    criterion = build(config["loss"], nn.Module)
    optimizer, scheduler = instantiate(config["optimizer"])(clap, criterion, total_steps=400)
    trainer = ClapTrainer(*loaders, None, clap, optimizer, criterion, 1, scheduler=scheduler, tracker=timed)
    tracker.start_system_metrics()
    seconds.add(trainer.fit, folder)
    tracker.finish()
    intervals = trainer.step / LOG_EVERY
    name = f"a training at {trainer.step / seconds.wall:.0f} steps/s, per interval"
    Pair(timed.seconds, Seconds()).print_row(name, count=intervals, of=seconds.wall / intervals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri", help="MLflow store, such as http://HOST:PORT (default: a temporary SQLite file)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = parser.parse_args().uri or str(folder / "mlflow.db")
        start(uri, folder / "first").finish()  # creates the store
        print(
            "| | wall on, ms | wall off, ms | processor on, ms | processor off, ms | on / off | share | of processor |"
        )
        print("|---|---|---|---|---|---|---|---|")
        once, trackers, config = Pair.new(), [], compose_config([])
        once.on.add(lambda: trackers.append(start(uri, folder / "on", config)))
        once.off.add(lambda: trackers.append(start(None, folder / "off", config)))
        compare_intervals(*trackers)
        once.on.add(trackers[0].finish)
        once.off.add(trackers[1].finish)
        once.print_row("start and end, once per run")
        train(start(uri, folder / "trained"), folder / "trained")


if __name__ == "__main__":
    main()

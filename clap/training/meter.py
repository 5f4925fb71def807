"""What training has processed so far, and its speed: between two logged steps or lines, and as a whole."""

from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from clap.dataset.cache import CacheUse
from clap.dataset.loader import Batch
from clap.model import Clap
from clap.process_group import gather_numbers, mean_over_ranks
from clap.training.cost import measure_peaks, measure_size
from clap.training.stopwatch import PARTS, StepClock, Stopwatch
from clap.training.trainer_settings import TrainerSettings
from clap.training.utilization import Utilization


@dataclass
class LineTotals:
    """The steps and clips since a line of the log, the sum of their losses (), and the clocks at that line."""

    fit_seconds: float = 0.0
    train_seconds: float = 0.0
    loss: Tensor | float = 0.0
    steps: int = 0
    clips: int = 0


class Meter:
    """Counts steps, clips and seconds of a training over all its resumes and processes.

    Attributes:
        fit_time: of everything. train_time: of steps and waiting for data. clock: of the parts of steps.
        unlogged: loss, norm of the gradients and number of clips of each step since the last logged one.
        line: what the next line of an epoch or validation describes.
        clips_seen, samples_seen: clips that were trained on, and their samples.
        cache_use, earlier_cache_use: of this process; of all processes before a resume.
        peaks: of memory, before a resume.
    """

    def __init__(self, clap: Clap, settings: TrainerSettings) -> None:
        self.clap, self.utilization = clap, Utilization(clap, settings)
        self.fit_time, self.train_time, self.clock = Stopwatch(), Stopwatch(), StepClock(clap.device)
        self.unlogged: list[tuple[Tensor, Tensor, int]] = []
        self.logged_time, self.logged_parts = 0.0, dict.fromkeys(PARTS, 0.0)  # until the last logged step
        self.line = LineTotals()
        self.clips_seen, self.samples_seen = 0, 0
        self.cache_use, self.earlier_cache_use = CacheUse(), CacheUse()
        self.peaks: dict[str, int] = {}

    def add(self, batch: Batch, loss: Tensor, norm: Tensor, *, clips: int, samples: int) -> None:
        """Count a step at its end; loss () and norm () of the gradients stay on their device until they are logged.

        Args:
            batch: of this process. clips, samples: of all processes.
        """
        self.clock.lap("optimizer")
        self.clips_seen += clips
        self.samples_seen += samples
        self.unlogged.append((loss.detach(), norm.detach(), clips))
        self.line.loss = self.line.loss + loss.detach()
        self.line.steps, self.line.clips = self.line.steps + 1, self.line.clips + clips
        self.cache_use += batch.cache_use
        self.utilization.add(batch)

    def read(self) -> dict[str, float]:
        """Means since the last call: of loss, gradient norm, seconds of a step, speed; peak memory. Collective."""
        seconds, (parts, peaks) = self.train_time.seconds, self.read_ranks()
        losses, norms, clips = zip(*self.unlogged, strict=True)
        speed = sum(clips) / (seconds - self.logged_time)
        metrics = {
            "loss": mean_over_ranks(torch.stack(losses).mean()).item(),
            "grad_norm": mean_of_finite(torch.stack(norms)),
            "clips_per_second": speed,
            **{f"seconds/{part}": (parts[part] - self.logged_parts[part]) / len(clips) for part in PARTS},
            **peaks,
        }
        self.unlogged, self.logged_time, self.logged_parts = [], seconds, parts
        with self.train_time.paused():  # of the first batch, arithmetic is counted
            metrics |= self.utilization.read(speed)
        return {f"train/{name}": value for name, value in metrics.items()}

    def read_line(self) -> dict[str, float]:
        """Mean loss, seconds with validation and saving, and clips/s since the last call, in this process; collective.

        Empty before the first step.
        """
        line, self.line = self.line, LineTotals(self.fit_time.seconds, self.train_time.seconds)
        if not line.steps:
            return {}
        return {
            "loss": mean_over_ranks(line.loss / line.steps).item(),
            "seconds": self.fit_time.seconds - line.fit_seconds,
            "clips_per_second": line.clips / max(self.train_time.seconds - line.train_seconds, 1e-9),
        }

    def read_ranks(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds of the parts of all steps, their mean over the ranks, and the highest peaks of memory; collective."""
        parts, peaks = self.clock.read(), measure_peaks(self.peaks)
        facts = gather_numbers([*(round(1e6 * seconds) for seconds in parts.values()), *peaks.values()])
        means = (facts[:, : len(parts)].double().mean(dim=0) / 1e6).tolist()
        highest = facts[:, len(parts) :].amax(dim=0).tolist()
        return dict(zip(parts, means, strict=True)), dict(zip(peaks, highest, strict=True))

    def read_cache_use(self) -> CacheUse:
        """Of the training clips of all ranks and resumes; collective."""
        return self.earlier_cache_use + CacheUse(*gather_numbers(astuple(self.cache_use)).sum(dim=0).tolist())

    def cost(self, *, steps: int) -> dict[str, float]:
        """Time, speed, peak memory and size of the training; docs/runs.md describes each number. Collective."""
        duration = self.samples_seen / max(self.clips_seen, 1) / self.clap.sample_rate
        (parts, peaks), use = self.read_ranks(), asdict(self.read_cache_use())
        return {
            "seconds": round(self.fit_time.seconds, 1),
            **{f"seconds_{part}": round(seconds, 1) for part, seconds in parts.items()},
            "clips_per_second": round(self.clips_seen / max(self.train_time.seconds, 1e-9), 1),
            "steps": steps,
            **peaks,
            **({f"cache_{name}": count for name, count in use.items()} if any(use.values()) else {}),
            **measure_size(self.clap, duration=duration or self.clap.audio_encoder.window),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; collective."""
        parts, peaks = self.read_ranks()
        return {
            "clips_seen": self.clips_seen,
            "samples_seen": self.samples_seen,
            "seconds": self.fit_time.seconds,
            "train_seconds": self.train_time.seconds,
            "parts": parts,
            "unlogged": [(loss.item(), clips, norm.item()) for loss, norm, clips in self.unlogged],
            "logged_time": self.logged_time,
            "logged_parts": self.logged_parts,
            "peaks": peaks,
            "cache_use": astuple(self.read_cache_use()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint; earlier versions lack parts, norms of gradients, and cache_use."""
        self.clips_seen, self.samples_seen = state["clips_seen"], state["samples_seen"]
        self.fit_time.before, self.train_time.before = state["seconds"], state["train_seconds"]
        self.clock.seconds |= state["parts"]
        unlogged = [(loss, norm[0] if norm else torch.nan, clips) for loss, clips, *norm in state["unlogged"]]
        device = self.clap.device
        self.unlogged = [(torch.tensor(a, device=device), torch.tensor(b, device=device), n) for a, b, n in unlogged]
        self.earlier_cache_use = CacheUse(*state.get("cache_use", ()))
        self.logged_time, self.peaks = state["logged_time"], state["peaks"]
        self.logged_parts |= state["logged_parts"]
        self.line = LineTotals(self.fit_time.before, self.train_time.before)


def mean_of_finite(values: Tensor) -> float:
    """Mean of the finite values (steps,), those of steps that fp16 has not skipped; inf or nan if none is finite."""
    finite = values[values.isfinite()]
    return (finite if len(finite) else values).mean().item()

"""What training has processed so far, and its speed: losses between two log lines, clips, seconds, peak memory."""

from typing import Any

import torch
from torch import Tensor

from clap.model import Clap
from clap.process_group import mean_over_ranks
from clap.training.cost import measure_peaks, measure_size
from clap.training.stopwatch import Stopwatch


class Meter:
    """Counts steps, clips and seconds of a training over all its resumes and processes.

    Attributes:
        fit_time: of everything. train_time: of steps and waiting for data.
        unlogged: loss and number of clips of each step since the last logged one.
        clips_seen, samples_seen: clips that were trained on, and their samples.
        peaks: of memory, before a resume.
    """

    def __init__(self) -> None:
        self.fit_time, self.train_time = Stopwatch(), Stopwatch()
        self.unlogged: list[tuple[Tensor, int]] = []
        self.logged_time = 0.0  # train_time of the last logged step
        self.clips_seen, self.samples_seen = 0, 0
        self.peaks: dict[str, int] = {}

    def add(self, loss: Tensor, *, clips: int, samples: int) -> None:
        """Count a step; the loss stays on its device until it is logged."""
        self.clips_seen += clips
        self.samples_seen += samples
        self.unlogged.append((loss.detach(), clips))

    def read(self) -> dict[str, float]:
        """Mean loss and clips per second since the last call; collective."""
        seconds = self.train_time.seconds
        loss = mean_over_ranks(torch.stack([loss for loss, _ in self.unlogged]).mean()).item()
        speed = sum(clips for _, clips in self.unlogged) / (seconds - self.logged_time)
        self.unlogged, self.logged_time = [], seconds
        return {"train/loss": loss, "train/clips_per_second": speed}

    def cost(self, clap: Clap, *, steps: int) -> dict[str, float]:
        """Time, speed, peak memory and size of the training; docs/runs.md describes each number."""
        duration = self.samples_seen / max(self.clips_seen, 1) / clap.sample_rate
        return {
            "seconds": round(self.fit_time.seconds, 1),
            "clips_per_second": round(self.clips_seen / max(self.train_time.seconds, 1e-9), 1),
            "steps": steps,
            **measure_peaks(self.peaks),
            **measure_size(clap, duration=duration or clap.audio_encoder.window),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "clips_seen": self.clips_seen,
            "samples_seen": self.samples_seen,
            "seconds": self.fit_time.seconds,
            "train_seconds": self.train_time.seconds,
            "unlogged": [(loss.item(), clips) for loss, clips in self.unlogged],
            "logged_time": self.logged_time,
            "peaks": measure_peaks(self.peaks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clips_seen, self.samples_seen = state["clips_seen"], state["samples_seen"]
        self.fit_time.before, self.train_time.before = state["seconds"], state["train_seconds"]
        self.unlogged = [(torch.tensor(loss), clips) for loss, clips in state["unlogged"]]
        self.logged_time, self.peaks = state["logged_time"], state["peaks"]

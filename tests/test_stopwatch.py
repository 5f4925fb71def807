"""The clocks of training."""

from types import SimpleNamespace

import pytest
import torch

from clap.training import stopwatch
from clap.training.stopwatch import StepClock, Stopwatch


def test_paused_seconds_are_not_counted(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    watch = Stopwatch()
    watch.before = 100.0
    now[0] += 1  # not running yet
    with watch.running():
        now[0] += 2
        with watch.paused():
            now[0] += 4
            assert watch.seconds == 102
        now[0] += 8
        assert watch.seconds == 110
    now[0] += 16
    with pytest.raises(KeyboardInterrupt), watch.running():
        now[0] += 32
        raise KeyboardInterrupt
    now[0] += 64
    assert watch.seconds == 142


def test_seconds_of_a_step_are_divided_into_parts(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = StepClock(torch.device("cpu"))
    for part, seconds in (("data", 1.0), ("forward_backward", 2.0), (None, 4.0), ("data", 8.0), ("optimizer", 16.0)):
        now[0] += seconds
        if part is None:
            clock.restart()
        else:
            clock.lap(part)
    assert clock.read() == {"data": 9.0, "forward_backward": 2.0, "optimizer": 16.0}


class FakeEvent:
    """A moment of `torch.cuda.Event` that the GPU reaches later than the host."""

    host, reached = 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = FakeEvent.host

    def query(self) -> bool:
        return self.time <= FakeEvent.reached

    def synchronize(self) -> None:
        FakeEvent.reached = max(FakeEvent.reached, self.time)

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert end.query(), "the host would wait"
        return 1000 * (end.time - self.time)


def test_clock_of_a_gpu_does_not_wait_for_it_until_it_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock = StepClock(torch.device("cuda"))
    for step in range(4):
        FakeEvent.host += 1
        clock.lap("data")
        FakeEvent.host += 2
        clock.lap("optimizer")
        FakeEvent.reached = 3.0 * step  # the GPU is a step behind
    assert clock.seconds["optimizer"] == 4.0
    assert clock.read() == {"data": 4.0, "forward_backward": 0.0, "optimizer": 8.0}

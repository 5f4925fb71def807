"""The clock of training."""

from types import SimpleNamespace

import pytest

from clap.training import stopwatch
from clap.training.stopwatch import Stopwatch


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

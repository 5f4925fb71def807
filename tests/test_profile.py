"""The profiler's trace of a training."""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from test_state import interrupt_after

from clap.training import stopwatch
from clap.training.profile import ACTIVE, WAIT, WARMUP, end_step, profile_steps


def read_steps(folder: Path) -> list[str]:
    """Names of the traced steps."""
    with gzip.open(folder / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert any(event["name"].startswith("aten::") for event in events)
    return sorted({event["name"] for event in events if event["name"].startswith("ProfilerStep#")})


def test_trace_has_a_few_steps_after_the_first_and_is_an_artifact(
    make_trainer: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    trainer, sent = make_trainer(epochs=5, profile=True), []
    trainer.tracker = Mock(run_id="", log_artifact=sent.append)
    trainer.validation.sets[0].loaders.pop("val")
    trainer.fit(tmp_path)
    first = WAIT + WARMUP
    assert read_steps(tmp_path) == [f"ProfilerStep#{number}" for number in range(first, first + ACTIVE)]
    assert sent == [tmp_path / "profile"]
    assert "  operation\n" in caplog.text and "aten::" in caplog.text


@pytest.mark.slow
def test_short_training_is_traced(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=2, max_steps=3, profile=True)
    trainer.validation.sets[0].loaders.pop("val")
    trainer.fit(tmp_path)
    assert len(read_steps(tmp_path)) == 3 - WARMUP


@pytest.mark.slow
def test_interrupted_training_writes_the_steps_so_far(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=2, profile=True)
    trainer.train_step = interrupt_after(trainer, 3)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(tmp_path)
    assert len(read_steps(tmp_path)) == 3


def test_time_of_the_profiler_is_not_that_of_the_training(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch):
    now, trainer = [0.0], make_trainer()
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def step() -> None:
        now[0] += 50.0

    trainer.meter.clock.restart()
    with trainer.meter.train_time.running():
        now[0] += 2.0
        end_step(trainer, SimpleNamespace(step=step))
        trainer.meter.clock.lap("optimizer")
    assert trainer.meter.train_time.seconds == trainer.meter.clock.read()["optimizer"] == 2.0


def test_nothing_is_traced_without_the_setting(make_trainer: Callable, tmp_path: Path):
    with profile_steps(make_trainer()):
        assert not torch.autograd._profiler_enabled()

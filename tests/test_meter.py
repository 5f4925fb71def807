"""What a training logs of its speed, and what its checkpoints keep of it."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks

from clap.dataset.cache import CacheUse
from clap.model import Clap
from clap.process_group import rank
from clap.training import meter as meter_module
from clap.training import stopwatch
from clap.training import trainer as trainer_module
from clap.training.meter import Meter, mean_of_finite
from clap.training.state import read_trainer_state
from clap.training.trainer_settings import TrainerSettings


def make_meter(clap: Clap) -> Meter:
    """A meter that does not count FLOPs."""
    meter = Meter(clap, TrainerSettings())
    meter.utilization = SimpleNamespace(add=lambda batch: None, read=lambda clips_per_second: {})
    return meter


@pytest.fixture
def meter(tiny_clap: Callable) -> Meter:
    return make_meter(tiny_clap())


def add_steps(meter: Meter, norms: list[float]) -> None:
    """Steps of six clips with these norms of the gradients and the losses 1, 2, ..."""
    for number, norm in enumerate(norms, start=1):
        meter.add(
            SimpleNamespace(cache_use=CacheUse(4, 2, 100)),
            torch.tensor(float(number)),
            torch.tensor(norm),
            clips=6,
            samples=60,
        )


def test_logged_norm_is_that_before_clipping(make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, norms, logged = make_trainer(epochs=1, log_every=2, max_grad_norm=1e-3), [], []
    monkeypatch.setattr(trainer_module, "clip_gradients", lambda parameters, max_norm, norm: norms.append(norm.item()))
    trainer.log_metrics = lambda metrics: logged.append(metrics.get("train/grad_norm"))
    trainer.fit(tmp_path)
    assert logged[0] == pytest.approx(sum(norms) / 2) and min(norms) > 10 * trainer.settings.max_grad_norm


def test_norm_of_a_step_that_fp16_skips_is_not_in_the_mean():
    assert mean_of_finite(torch.tensor([1.0, math.inf, 3.0, math.nan])) == 2
    assert mean_of_finite(torch.tensor([math.inf])) == math.inf


def test_seconds_are_means_of_the_steps_since_the_last_log_line(meter: Meter, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    meter.clock.restart()
    found = []
    with meter.train_time.running():
        for waiting in (1.0, 3.0, 5.0, 7.0):
            now[0] += waiting
            meter.clock.lap("data")
            now[0] += 2.0
            meter.clock.lap("forward_backward")
            now[0] += 0.5
            add_steps(meter, [1.0])
            if len(meter.unlogged) == 2:
                found.append(meter.read())
                now[0] += 100.0  # a validation
            meter.clock.restart()
    assert [metrics["train/seconds/data"] for metrics in found] == [2.0, 6.0]
    assert [metrics["train/seconds/forward_backward"] for metrics in found] == [2.0, 2.0]
    assert [metrics["train/seconds/optimizer"] for metrics in found] == [0.5, 0.5]
    cost = meter.cost(steps=4)
    assert (cost["seconds_data"], cost["seconds_forward_backward"], cost["seconds_optimizer"]) == (16.0, 8.0, 2.0)


def test_state_of_the_version_before_is_read(meter: Meter):
    meter.clock.seconds["data"] = 5.0
    add_steps(meter, [1.0, 2.0])
    state = meter.state_dict()
    earlier = state | {
        "unlogged": [(loss, clips) for loss, clips, _ in state["unlogged"]],
        "parts": {},
        "logged_parts": {},
    }
    resumed = make_meter(meter.clap)
    resumed.load_state_dict(earlier)
    add_steps(resumed, [4.0])
    with resumed.train_time.running():
        found = resumed.read()
    assert found["train/loss"] == pytest.approx(4 / 3) and found["train/grad_norm"] == 4.0
    assert 0 <= found["train/seconds/data"] < 1


def test_state_keeps_steps_that_are_not_logged(meter: Meter):
    meter.clock.seconds["data"] = 5.0
    add_steps(meter, [1.0, 3.0])
    resumed = make_meter(meter.clap)
    resumed.load_state_dict(meter.state_dict())
    with resumed.train_time.running():
        found = resumed.read()
    assert (found["train/loss"], found["train/grad_norm"], found["train/seconds/data"]) == (1.5, 2.0, 2.5)


def test_numbers_count_for_all_processes(tiny_clap: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meter_module, "measure_peaks", lambda before: {"peak_memory_bytes": 10**12 + rank()})

    def measure(number: int) -> dict:
        meter = make_meter(clap)
        meter.clock.seconds["data"] = 4.0 + 2.0 * number
        add_steps(meter, [1.0])
        with meter.train_time.running():
            return {"log": meter.read(), "state": meter.state_dict(), "cost": meter.cost(steps=1)}

    clap = tiny_clap()
    for found in run_ranks(measure):
        assert (
            found["log"]["train/seconds/data"] == found["state"]["parts"]["data"] == found["cost"]["seconds_data"] == 5
        )
        assert found["log"]["train/peak_memory_bytes"] == found["state"]["peaks"]["peak_memory_bytes"] == 10**12 + 1
        assert found["cost"]["peak_memory_bytes"] == 10**12 + 1
        assert [found["cost"][f"cache_{name}"] for name in ("hits", "misses", "bytes")] == [8, 4, 200]


def test_use_of_the_cache_counts_over_resumes(meter: Meter):
    add_steps(meter, [1.0])
    resumed = make_meter(meter.clap)
    resumed.load_state_dict(meter.state_dict())
    add_steps(resumed, [1.0, 1.0])
    assert resumed.read_cache_use() == CacheUse(12, 6, 300)


def test_trainer_logs_the_parts_and_keeps_them_in_a_checkpoint(make_trainer: Callable, tmp_path: Path):
    trainer, logged = make_trainer(epochs=1, log_every=1), {}
    trainer.log_metrics = logged.update
    trainer.fit(tmp_path)
    parts = [logged[f"train/seconds/{part}"] for part in ("data", "forward_backward", "optimizer")]
    assert all(seconds > 0 for seconds in parts)
    assert sum(trainer.meter.clock.read().values()) <= trainer.meter.train_time.seconds
    assert 0 < logged["train/share_of_peak"] < 1 and logged["train/tflops_per_second"] > 0
    assert logged["train/peak_memory_bytes"] > 10**6
    state = read_trainer_state(tmp_path / "checkpoints" / "last")
    assert state["parts"] == pytest.approx(trainer.meter.clock.read(), abs=1e-5)

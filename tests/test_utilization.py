"""FLOPs of a training and their share of the peak."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from clap.training.cost import step_flops
from clap.training.trainer_settings import TrainerSettings
from clap.training.utilization import Utilization


class Shaped(SimpleNamespace):
    """A batch that only has its shape."""

    def __len__(self) -> int:
        return len(self.samples)


def make_shaped(rows: int, num_samples: int, num_tokens: int) -> Shaped:
    return Shaped(samples=torch.zeros(rows, num_samples), token_ids=torch.zeros(rows, num_tokens, dtype=torch.long))


@pytest.fixture
def utilization(tiny_clap: Callable) -> Utilization:
    return Utilization(tiny_clap(), TrainerSettings())


def test_rate_is_that_of_the_first_batch_with_clips(utilization: Utilization):
    clap = utilization.clap
    utilization.peak = 1e9
    for batch in (make_shaped(0, 0, 0), make_shaped(4, clap.sample_rate, 7), make_shaped(2, 2 * clap.sample_rate, 9)):
        utilization.add(batch)
    flops = step_flops(clap, batch_size=4, duration=1.0, num_tokens=7)
    found = utilization.read(clips_per_second=12.0)
    assert found["tflops_per_second"] == pytest.approx(3 * flops / 1e12)
    assert found["share_of_peak"] == pytest.approx(3 * flops / 1e9)


def test_flops_are_counted_once_for_the_parts_that_train(utilization: Utilization, monkeypatch: pytest.MonkeyPatch):
    calls = []
    count = Utilization.try_to_count
    monkeypatch.setattr(Utilization, "try_to_count", lambda *arguments: calls.append(0) or count(*arguments))
    utilization.add(make_shaped(1, utilization.clap.sample_rate, 7))
    utilization.clap.freeze(["text_encoder"])
    rates = [utilization.read(1.0)["tflops_per_second"] for _ in range(2)]
    utilization.clap.freeze([])
    utilization.clap.text_encoder.requires_grad_(True)
    assert utilization.read(1.0)["tflops_per_second"] > rates[0] == rates[1]
    assert len(calls) == 2


def test_share_needs_a_measured_peak(utilization: Utilization):
    utilization.add(make_shaped(1, utilization.clap.sample_rate, 7))
    assert utilization.read(1.0).keys() == {"tflops_per_second"}
    state = torch.get_rng_state()
    utilization.measure_peak()
    assert utilization.read(1.0)["share_of_peak"] > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_model_that_reads_values_is_not_counted(utilization: Utilization, caplog: pytest.LogCaptureFixture):
    encoder = utilization.clap.text_encoder
    forward = encoder.forward
    encoder.forward = lambda *tokens: forward(*tokens) * float(tokens[0].sum().item() > 0)
    utilization.add(make_shaped(1, utilization.clap.sample_rate, 7))
    assert utilization.read(1.0) == utilization.read(1.0) == {}
    assert caplog.text.count("the FLOPs of this model are not logged") == 1

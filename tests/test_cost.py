"""What a model costs, against numbers worked out by hand."""

from mmap import mmap
from pathlib import Path

import pytest
import torch
from torch import nn

from clap.training.cost import (
    count_flops,
    forward_flops,
    measure_gemm_rate,
    measure_size,
    peak_memory,
    reset_peak_memory,
    step_flops,
)


def test_parameters_of_the_parts_are_counted(tiny_clap):
    clap = tiny_clap()
    cost = measure_size(clap, duration=1.0)
    assert cost["parameters"] == sum(p.numel() for p in clap.parameters())
    assert 0 < cost["audio_encoder_parameters"] < cost["parameters"]
    clap.freeze(["text_encoder"])
    frozen = measure_size(clap, duration=1.0)
    assert frozen["trainable_parameters"] == cost["parameters"] - cost["text_encoder_parameters"]


def test_flops_grow_by_those_of_an_added_layer(tiny_clap):
    clap = tiny_clap()
    before = forward_flops(clap)
    width = clap.audio_encoder.output_dim
    clap.audio_projection = nn.Sequential(nn.Linear(width, width, bias=False), clap.audio_projection)
    assert forward_flops(clap) - before == 2 * width * width


def test_flops_of_a_longer_clip_count_its_windows(tiny_clap):
    clap = tiny_clap("fusion=mean")
    text = 2 * forward_flops(clap, duration=1.0) - forward_flops(clap, duration=2.0)
    assert 0 < text < forward_flops(clap, duration=1.0) / 2
    assert forward_flops(clap, duration=2.5) - text == 3 * (forward_flops(clap) - text)
    plain = tiny_clap()
    assert forward_flops(plain, duration=2.5) == forward_flops(plain)


@pytest.mark.parametrize("frozen", [[], ["text_encoder"], ["audio_encoder", "audio_projection"]])
def test_step_has_the_flops_of_the_computed_one(tiny_clap, frozen: list[str]):
    clap = tiny_clap().freeze(frozen)
    clap.train()
    state, weight = torch.get_rng_state(), clap.state_dict()["audio_projection.linear1.weight"].clone()
    counted = step_flops(clap, batch_size=3, duration=1.0, num_tokens=7)
    assert torch.equal(torch.get_rng_state(), state) and clap.text_projection.training
    assert (
        torch.equal(clap.audio_projection.linear1.weight, weight) and clap.audio_projection.linear1.weight.grad is None
    )
    lengths, tokens = torch.full((3,), clap.sample_rate), torch.ones(3, 7, dtype=torch.long)
    waveform = torch.randn(3, clap.sample_rate)

    def step() -> None:
        audio, text, _ = clap(waveform, lengths, tokens, tokens.bool())
        (audio.sum() + text.sum()).backward()

    frontend = clap.audio_encoder.frontend
    mel = 2 * 3 * frontend.num_frames * (frontend.n_fft // 2 + 1) * frontend.n_mels
    assert counted == count_flops(step) - mel


def test_activations_that_are_computed_twice_count_once(tiny_clap):
    clap = tiny_clap()
    clap.train()
    counted = step_flops(clap, batch_size=1, duration=1.0)
    clap.audio_encoder.checkpoint_activations()
    clap.text_encoder.checkpoint_activations()
    assert step_flops(clap, batch_size=1, duration=1.0) == counted
    assert any(getattr(module, "grad_checkpointing", False) for module in clap.modules())


def test_step_of_a_frozen_model_has_no_backward_pass(tiny_clap):
    clap = tiny_clap()
    parts = [name for name, _ in clap.named_children()]
    trained = step_flops(clap, batch_size=2, duration=1.0)
    assert step_flops(clap.freeze(parts), batch_size=2, duration=1.0) < 0.4 * trained


def test_more_tokens_and_clips_cost_more(tiny_clap):
    clap = tiny_clap()
    one, two = (step_flops(clap, batch_size=size, duration=1.0, num_tokens=8) for size in (1, 2))
    assert two == 2 * one
    assert step_flops(clap, batch_size=1, duration=1.0, num_tokens=16) > one


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rate_of_matrix_products_is_measured(precision: str):
    state = torch.get_rng_state()
    assert 1e8 < measure_gemm_rate(torch.device("cpu"), precision, seconds=0.01) < 1e14
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets peaks")
def test_peak_memory_counts_from_the_reset():
    with mmap(-1, 50_000_000) as block:  # not from the heap, which keeps what it is given back
        block.write(bytes(len(block)))
        high = peak_memory()
    reset_peak_memory()
    assert peak_memory() < high - 40_000_000

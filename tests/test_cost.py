"""What a model costs, against numbers worked out by hand."""

from mmap import mmap
from pathlib import Path

import pytest
from torch import nn

from clap.training.cost import forward_flops, measure_size, peak_memory, reset_peak_memory


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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets peaks")
def test_peak_memory_counts_from_the_reset():
    with mmap(-1, 50_000_000) as block:  # not from the heap, which keeps what it is given back
        block.write(bytes(len(block)))
        high = peak_memory()
    reset_peak_memory()
    assert peak_memory() < high - 40_000_000

"""What a model costs, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from clap.cost import count_flops, measure, peak_memory, reset_peak_memory


def test_parameters_of_the_parts_are_counted(tiny_clap):
    clap = tiny_clap()
    cost = measure(clap)
    assert cost["parameters"] == sum(p.numel() for p in clap.parameters())
    assert 0 < cost["audio_encoder_parameters"] < cost["parameters"]
    clap.freeze(["text_encoder"])
    frozen = measure(clap)
    assert frozen["trainable_parameters"] == cost["parameters"] - cost["text_encoder_parameters"]


def test_flops_grow_by_those_of_an_added_layer(tiny_clap):
    clap = tiny_clap()
    before = count_flops(clap)
    width = clap.audio_encoder.output_dim
    clap.audio_projection = nn.Sequential(nn.Linear(width, width, bias=False), clap.audio_projection)
    assert count_flops(clap) - before == 2 * width * width


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peaks anew")
def test_peak_memory_counts_from_the_reset():
    block = np.ones(50_000_000, dtype=np.uint8)
    high = peak_memory()
    del block
    reset_peak_memory()
    assert peak_memory() < high - 40_000_000

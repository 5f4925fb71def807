"""Mixed precision of the training."""

import pytest
import torch

from clap.training.precision import make_autocast


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="set bf16 or fp32"):
        make_autocast("fp16", torch.device("cpu"))


def test_only_fp16_scales_the_loss():
    assert not make_autocast("bf16", torch.device("cpu"))[1].is_enabled()

"""Checkpoints whose config describes a larger model than their file holds."""

import time
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from clap.checkpoint import read_weights
from clap.model import Clap
from clap.published.limits import check_described

HUGE = {
    "embed_dim": 10**12,
    "audio_encoder.depths": [300_000, 1, 1],
    "audio_encoder.image_size": 2**16,
    "audio_encoder.window_size": 2**12,
    "audio_encoder.frontend.n_fft": 2**24,
    "audio_encoder.frontend.window": 1e12,
    "text_encoder.model.n_layer": 10**6,
    "text_encoder.model.n_embd": 2**20,
}


@pytest.mark.parametrize(("key", "value"), HUGE.items(), ids=HUGE.keys())
def test_huge_size_is_refused_at_once(tiny_checkpoint: Path, tmp_path: Path, key: str, value: object):
    for name in ("model.safetensors", "tokenizer"):
        (tmp_path / name).symlink_to(tiny_checkpoint / name)
    config = OmegaConf.load(tiny_checkpoint / "config.yaml")
    OmegaConf.update(config, key, value)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OmegaConf.to_container(config)))
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        Clap.from_ckpt(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ") and time.monotonic() - start < 30


def test_buffers_that_are_not_in_the_file_are_limited(tiny_config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.published.limits.MAX_BUFFERS", 1000)
    with pytest.raises(ValueError, match="checkpoint: refused, its config describes buffers of 0.0 GB"):
        check_described(Clap, tiny_config(), dict.fromkeys(range(100)), "checkpoint")


def test_check_draws_no_random_numbers_and_allocates_no_weights(tiny_checkpoint: Path, tiny_config):
    weights, before = read_weights(tiny_checkpoint), torch.get_rng_state()
    model = check_described(Clap, tiny_config(), weights, "checkpoint")
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}

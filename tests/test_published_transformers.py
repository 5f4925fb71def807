"""A ClapModel of transformers, loaded here, gives the same embeddings and logits."""

import json
from pathlib import Path

import numpy as np
import published_models as models
import pytest
import torch
from pinned_starts import pinned_starts
from torch.testing import assert_close
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from clap import Clap

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # on unit-norm embeddings
SMALL_TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 90,
}
SMALL_AUDIO = {
    "patch_embeds_hidden_size": 8,
    "hidden_size": 64,
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [2, 2, 4, 4],
}
LONG_START = 31234  # samples


def make_transformers(folder: Path, *, fused: bool, small: bool) -> ClapModel:
    """A ClapModel of random weights, saved with its feature extractor's settings."""
    audio = {"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    sizes = {"text_config": SMALL_TEXT, "projection_dim": 8} if small else {}
    config = ClapConfig(audio_config=audio | (SMALL_AUDIO if small else {}), **sizes)
    torch.manual_seed(0)
    model = ClapModel(config).eval()
    for key, value in model.state_dict().items() if small else ():
        if value.is_floating_point():
            value.copy_(models.fill_tensor(key, tuple(value.shape)))
    model.save_pretrained(folder)
    make_extractor(fused).save_pretrained(folder)
    return model


def make_extractor(fused: bool) -> ClapFeatureExtractor:
    return ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc", frequency_min=50)


def assert_equal_to_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fused: bool, small: bool) -> None:
    """Compare both towers and the logits for clips below, at, above and less than a hop above the window."""
    model = make_transformers(folder, fused=fused, small=small)
    clap = Clap.from_ckpt(folder)
    seconds = (2.7, 10.0, 12.4, 10.004)
    waveforms = [models.make_waveform(s, 48000, 200.0 + 70 * i) for i, s in enumerate(seconds)]
    monkeypatch.setattr(np.random, "randint", lambda low, high: min(LONG_START, high - 1))
    monkeypatch.setattr(np.random, "choice", lambda frames: int(frames[len(frames) // 3]))
    groups = np.array_split(range(len(waveforms[2]) // 480 + 1 - 1000), 3)
    local = [int(group[len(group) // 3]) for group in groups]
    features = make_extractor(fused)([w.numpy() for w in waveforms], sampling_rate=48000, return_tensors="pt")
    ids, mask = models.make_tokens()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long(), **features)
        with pinned_starts(clap.audio_encoder, local if fused else LONG_START):
            audio = clap.get_audio_embeddings(waveforms, 48000)
        text = clap.embed_text(ids, mask)
    assert_close(audio, expected.audio_embeds, **TOLERANCE)
    assert_close(text, expected.text_embeds, **TOLERANCE)
    assert_close(clap.compute_similarity(audio, text), expected.logits_per_audio, **TOLERANCE)


@pytest.mark.parametrize("fused", [False, True])
def test_small_clap_model_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    assert_equal_to_transformers(tmp_path, monkeypatch, fused=fused, small=True)


@pytest.mark.slow  # 600 MB of weights, written and read
@pytest.mark.parametrize("fused", [False, True])
def test_full_size_clap_model_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    assert_equal_to_transformers(tmp_path, monkeypatch, fused=fused, small=False)


def test_pickled_weights_of_a_folder_are_read(tmp_path: Path) -> None:
    model = make_transformers(tmp_path, fused=False, small=True)
    first = Clap.from_ckpt(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_close(Clap.from_ckpt(tmp_path).state_dict(), first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "projection_hidden_act", "gelu"),
        ("audio_config", "hidden_act", "relu"),
        ("audio_config", "layer_norm_eps", 1e-6),
        ("audio_config", "patch_stride", [2, 2]),
        ("text_config", "is_decoder", True),
        ("text_config", "hidden_act", "no_such_act"),
        ("text_config", "num_attention_heads", 3),
        ("text_config", "num_attention_heads", "os.system"),
    ],
)
def test_config_that_cannot_be_rebuilt_is_refused(tmp_path: Path, section: str | None, key: str, value: object) -> None:
    make_transformers(tmp_path, fused=False, small=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    (config[section] if section else config)[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"^{tmp_path}: .*({key}|{value})") as error:
        Clap.from_ckpt(tmp_path)
    assert "\n" not in str(error.value)

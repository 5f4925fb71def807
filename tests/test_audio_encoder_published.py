"""Encoders equal the published models after renaming keys."""

import functools
import re
from collections.abc import Callable, Mapping

import pytest
import torch
from conftest import FFT_ROUNDING
from pinned_starts import pinned_starts
from small_encoders import make_encoder, randomize
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import ClapAudioConfig, ClapAudioModel

from clap.audio import LogMelSpectrogram
from clap.audio_encoder.base import LogMelEncoder
from clap.audio_encoder.cnn14 import Cnn14
from clap.audio_encoder.htsat import HTSAT
from clap.fusion import AFF, GlobalAndLocal, OneWindow, Views
from clap.published.frontends import TorchaudioLogMel

pytestmark = pytest.mark.usefixtures("one_thread")

LAION = {"sample_rate": 48000, "hop_length": 480, "int16": True}
FUSED = {"mel_scale": "htk"}
TOWERS = {  # published audio towers: class, merge, frontend
    "laion_htsat_unfused": (HTSAT, None, LAION),
    "laion_htsat_fused_aff2d": (HTSAT, AFF, {**LAION, **FUSED}),
    "laion_pann_unfused": (Cnn14, None, LAION),
    "laion_pann_fused_aff2d": (Cnn14, AFF, {**LAION, **FUSED}),
    "panns_cnn14_32k": (Cnn14, None, {"sample_rate": 32000, "hop_length": 320}),
}
UNUSED = re.compile(
    r"spectrogram_extractor|logmel_extractor|relative_position_index|attn_mask|tscam_conv|^head\.|fc_audioset"
)
RENAMES = (  # published audio tower -> this package
    (r"^(layers|patch_embed|norm)\b", r"trunk.\1"),
    (r"layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample"),
    (r"mel_conv2d", "local_proj"),
    (r"fusion_model", "merge"),
)
HF_RENAMES = (  # transformers -> published
    (r"^audio_encoder\.", ""),
    (r"^batch_norm", "bn0"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.self", "attn"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
)
Golden = Callable[[str], tuple[dict, dict[str, Tensor]]]


def rename(weights: Mapping[str, Tensor], renames: tuple) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def load_tower(golden: Golden, name: str) -> tuple[LogMelEncoder, dict, dict[str, Tensor]]:
    """A stored audio tower, its config and its tensors; loaded strictly, so the renames must be complete."""
    config, values = golden(name)
    cls, merge, frontend = TOWERS[name]
    audio = config.get("audio", config)
    if cls is HTSAT:
        sizes = {key: audio[key] for key in ("embed_dim", "depths", "num_heads")}
    else:
        sizes = {"width": config["cnn_width"]}
    merge = merge and functools.partial(merge, reduction=config["aff_r"])
    fusion = GlobalAndLocal(merge) if merge else OneWindow()
    log_mel = TorchaudioLogMel if frontend.get("mel_scale") == "htk" else LogMelSpectrogram
    encoder = cls(**sizes, frontend=log_mel(window=10.0, **frontend), fusion=fusion)
    own = re.compile(r"^ckpt/(module\.audio_branch\.|(?!module))")
    stored = {own.sub("", key): value for key, value in values.items() if own.match(key)}
    encoder.load_state_dict(rename({k: v for k, v in stored.items() if not UNUSED.search(k)}, RENAMES))
    return encoder.eval(), config, values


def read_waves(golden: Golden, names: list[str]) -> tuple[Tensor, Tensor]:
    """Stored waveforms (batch, samples) and their lengths (batch,)."""
    config, values = golden("waves")
    waveforms = []
    for name in names:
        derived = config["derived"].get(name, {"source": name, "first_samples": None})
        waveforms.append(values[f"wave/{derived['source']}"][: derived["first_samples"]])
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths


def plain_views(log_mel: Tensor) -> Views:
    """log_mel (batch, time, n_mels) of clips up to the window."""
    rows = torch.arange(len(log_mel))
    return Views(log_mel[:, None], torch.zeros(len(log_mel), dtype=torch.bool), rows)


def assert_published(features: Tensor, expected: Tensor) -> None:
    assert_close(features, expected, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_htsat_equals_laion_on_the_stored_log_mel(golden: Golden) -> None:
    encoder, _, values = load_tower(golden, "laion_htsat_unfused")
    assert_published(encoder.encode_views(plain_views(values["out/logmel"])), values["out/audio/encoder_embedding"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["laion_htsat_unfused", "laion_pann_unfused"])
def test_encoder_equals_laion(golden: Golden, name: str) -> None:
    encoder, config, values = load_tower(golden, name)
    waveform, lengths = read_waves(golden, config["batch"])
    start, size = config.get("long_crop_start", 0), encoder.frontend.num_samples
    for row in (lengths > size).nonzero().flatten():
        waveform[row, :size] = waveform[row, start : start + size].clone()
    assert_published(encoder(waveform[:, :size], lengths.clamp(max=size)), values["out/audio/encoder_embedding"])


@torch.no_grad()
@pytest.mark.parametrize("batch", ["mixed", "none_longer", "single_long"])
def test_fused_htsat_equals_laion(golden: Golden, batch: str) -> None:
    encoder, config, values = load_tower(golden, "laion_htsat_fused_aff2d")
    names = [f"{config['wave_group']}/{name}" for name in config["batches"][batch]]
    waveform, lengths = read_waves(golden, names)
    with pinned_starts(encoder, config["chunk_starts_long"]):
        views = encoder.fusion(waveform, lengths, encoder.frontend)
    assert views.is_longer.tolist() == values[f"out/{batch}/longer"].bool().flatten().tolist()
    found, stored = encoder.encode_views(views), values[f"out/{batch}/encoder_embedding"]
    assert_close(found, stored, rtol=1e-5, atol=2e-5 * FFT_ROUNDING)


@torch.no_grad()
def test_fused_htsat_equals_laion_on_the_stored_views(golden: Golden) -> None:
    encoder, _, values = load_tower(golden, "laion_htsat_fused_aff2d")
    views = Views(values["out/mel_fusion/long"][None], torch.tensor([True]), torch.tensor([0]))
    assert_published(encoder.encode_views(views), values["out/single_long/encoder_embedding"])


@torch.no_grad()
def test_four_views_equal_laion(golden: Golden) -> None:
    encoder, config, values = load_tower(golden, "laion_htsat_fused_aff2d")
    waveform, lengths = read_waves(golden, ["w48k/long"])
    with pinned_starts(encoder, config["chunk_starts_long"]):
        views = encoder.fusion(waveform, lengths, encoder.frontend)
    difference = (views.log_mel[0] - values["out/mel_fusion/long"]).abs()  # dB
    assert difference.max() < 5e-3 * FFT_ROUNDING and difference.mean() < 2e-3


@torch.no_grad()
def test_fused_cnn14_equals_laion(golden: Golden) -> None:
    encoder, config, values = load_tower(golden, "laion_pann_fused_aff2d")
    waveform, lengths = read_waves(golden, config["batch"])
    with pinned_starts(encoder, config["chunk_starts_long"]):
        views = encoder.fusion(waveform, lengths, encoder.frontend)
    assert_published(encoder.encode_views(views), values["out/audio/encoder_embedding"])


@torch.no_grad()
@pytest.mark.parametrize("clip", ["short", "equal", "silence"])
def test_cnn14_equals_panns(golden: Golden, clip: str) -> None:
    encoder, _, values = load_tower(golden, "panns_cnn14_32k")
    waveform, _ = read_waves(golden, [f"w32k/{clip}"])
    features = encoder.encode_views(plain_views(encoder.frontend(waveform)))  # at the length of the clip
    assert_published(features[0], values[f"out/embedding/{clip}"])


def make_transformers_pair(*, fused: bool) -> tuple[LogMelEncoder, ClapAudioModel]:
    """Our HTS-AT with the weights of a ClapAudioModel: keys renamed, and query, key, value joined."""
    config = ClapAudioConfig(
        spec_size=64,
        num_mel_bins=32,
        window_size=4,
        patch_embeds_hidden_size=8,
        hidden_size=16,
        depths=[2, 2],
        num_attention_heads=[2, 2],
        enable_fusion=fused,
        fusion_type="aff_2d" if fused else None,
    )
    model = ClapAudioModel(config).eval()
    randomize(model)
    weights = rename(model.state_dict(), (*HF_RENAMES, *RENAMES))
    for key in [key for key in weights if ".attn.query." in key]:
        parts = [weights.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        weights[key.replace("query", "qkv")] = torch.cat(parts)
    encoder = make_encoder(HTSAT, "aff" if fused else "none")
    encoder.load_state_dict({key: value for key, value in weights.items() if "position_index" not in key})
    return encoder, model


@torch.no_grad()
@pytest.mark.parametrize(("fused", "longer"), [(False, []), (True, []), (True, [1, 2]), (True, [0, 1, 2, 3])])
def test_htsat_equals_transformers(fused: bool, longer: list[int]) -> None:
    encoder, model = make_transformers_pair(fused=fused)
    log_mel = torch.randn(4, 4 if fused else 1, 101, 32, generator=torch.Generator().manual_seed(0))
    is_longer = torch.tensor([row in longer for row in range(4)])
    expected = model(input_features=log_mel, is_longer=is_longer[:, None]).pooler_output
    features = encoder.encode_views(Views(log_mel, is_longer, torch.arange(4)))
    assert_close(features, expected, rtol=1e-5, atol=5e-6)

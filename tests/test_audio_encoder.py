"""Encoders equal the published models after renaming keys, treat clips independently, and build from every yaml."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hydra
import pytest
import timm
import torch
from conftest import FFT_ROUNDING
from omegaconf import DictConfig
from pinned_starts import pinned_starts
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import ClapAudioConfig, ClapAudioModel

from clap.audio import LogMelSpectrogram, SpecAugment
from clap.audio_encoder.base import LogMelEncoder, average_by_row
from clap.audio_encoder.cnn14 import Cnn14
from clap.audio_encoder.htsat import HTSAT
from clap.audio_encoder.timm_backbone import TimmBackbone
from clap.config import read_config
from clap.fusion import AFF, DAF, IAFF, GlobalAndLocal, MeanOfWindows, OneWindow, Views, window_starts
from clap.parts import build_audio_encoder
from clap.published.frontends import TorchaudioLogMel

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000
LENGTHS = [3000, 39000, 16000, 16100, 30000]  # samples; the window has 16000, and 16100 is less than a hop more
CONF = Path(__file__).resolve().parents[1] / "conf"
OUTPUT_DIMS = {  # None: any width
    "htsat_tiny": 768,
    "htsat_base": 1024,
    "htsat_large": 2048,
    "htsat_nano": None,
    "cnn14": 2048,
    "cnn14_nano": None,
    "cnn14_mini": None,
    "timm": 320,
}
FUSIONS = {
    "none": OneWindow,
    "mean": MeanOfWindows,
    "daf": functools.partial(GlobalAndLocal, DAF),
    "aff": functools.partial(GlobalAndLocal, AFF),
    "iaff": functools.partial(GlobalAndLocal, IAFF),
    "channel_map": GlobalAndLocal,
}
MERGING = ("daf", "aff", "iaff")
SMALL = {
    HTSAT: {
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "image_size": 64,
        "window_size": 4,
        "drop_path": 0.0,
    },
    Cnn14: {"width": 4, "dropout": 0.0, "last_dropout": 0.0},
}
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
RENAMES = (  # published audio tower -> ours
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


def make_frontend(**arguments: object) -> LogMelSpectrogram:
    small = {"window": 1.0, "n_fft": 512, "hop_length": 160, "n_mels": 32, "f_max": 8000.0}
    return LogMelSpectrogram(**{"sample_rate": RATE, **small, **arguments})


def make_encoder(cls: type[LogMelEncoder], fusion: str = "none", **arguments: object) -> LogMelEncoder:
    torch.manual_seed(0)
    return cls(**{**SMALL[cls], "frontend": make_frontend(), "fusion": FUSIONS[fusion](), **arguments}).eval()


def make_batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Waveform (batch, samples) of noise, zero beyond its lengths (batch,)."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(lengths)


def rename(weights: Mapping[str, Tensor], renames: tuple) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def randomize(module: nn.Module) -> None:
    """Set every weight and running statistic so that no operation is an identity."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            value.copy_(1 + noise.abs() if name.endswith(("var", "norm.weight")) else 2 * noise)


# Published weights


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


# Clips are independent


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL)
def test_features_do_not_depend_on_the_batch(cls: type[LogMelEncoder], fusion: str) -> None:
    encoder, (waveform, lengths) = make_encoder(cls, fusion), make_batch(LENGTHS)
    randomize(encoder)
    alone = [encoder(waveform[i : i + 1, :n], lengths[i : i + 1])[0] for i, n in enumerate(LENGTHS)]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0]):
        features = encoder(waveform[order], lengths[order])
        assert_close(features, torch.stack([alone[i] for i in order]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL)
def test_features_are_identical_on_every_call(cls: type[LogMelEncoder], fusion: str) -> None:
    encoder, batch = make_encoder(cls, fusion), make_batch(LENGTHS)
    features = encoder(*batch)
    assert features.isfinite().all()
    assert_close(encoder(*batch), features, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["mean", *MERGING])
@pytest.mark.parametrize("cls", SMALL)
def test_short_clips_take_no_fusion_path(cls: type[LogMelEncoder], fusion: str) -> None:
    fused, plain, batch = make_encoder(cls, fusion), make_encoder(cls), make_batch([3000, 16000, 800])
    randomize(fused)
    assert not plain.load_state_dict(fused.state_dict(), strict=False).missing_keys
    assert_close(fused(*batch), plain(*batch))


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["none", "aff", "channel_map"])
@pytest.mark.parametrize("cls", SMALL)
def test_windows_mean_equals_the_mean_over_explicit_windows(cls: type[LogMelEncoder], fusion: str) -> None:
    encoder, (waveform, lengths) = make_encoder(cls, fusion), make_batch([39000, 3000])
    windows = torch.cat([waveform[:1, start : start + 16000] for start in window_starts(39000, 16000)])
    expected = encoder(windows, torch.full((len(windows),), 16000)).mean(dim=0)
    encoder.set_windows("mean")
    assert_close(encoder(waveform, lengths)[0], expected)


def test_average_by_row_takes_unequal_counts() -> None:
    features, row = torch.tensor([[1.0], [2.0], [4.0], [5.0]]), torch.tensor([0, 1, 1, 2])
    assert average_by_row(features, row, 3).flatten().tolist() == [1, 3, 5]


# Training


@pytest.mark.parametrize("fusion", MERGING)
@pytest.mark.parametrize("cls", SMALL)
def test_single_longer_clip_trains(cls: type[LogMelEncoder], fusion: str) -> None:
    encoder = make_encoder(cls, fusion).train()
    encoder(*make_batch([39000])).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL)
def test_training_follows_the_seed(cls: type[LogMelEncoder], fusion: str) -> None:
    encoder, batch, drawn = make_encoder(cls, fusion).train(), make_batch(LENGTHS), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(encoder(*batch))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2]) == (fusion == "mean")  # which draws no random numbers


@pytest.mark.parametrize("cls", SMALL)
def test_spec_augment_acts_in_training_only(cls: type[LogMelEncoder]) -> None:
    plain, batch = make_encoder(cls), make_batch([16000, 16000])
    masked = make_encoder(cls, spec_augment=SpecAugment(time_mask=50, frequency_mask=16))
    assert_close(masked(*batch), plain(*batch), rtol=0, atol=0)
    assert not torch.allclose(masked.train()(*batch), plain.train()(*batch))


# Configs


@pytest.fixture(scope="module")
def compose() -> Iterator[Callable[..., DictConfig]]:
    """`compose(*overrides)` -> the composed training config."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: hydra.compose("config", overrides=list(overrides))


def build_encoder(config: DictConfig) -> LogMelEncoder:
    return build_audio_encoder(read_config(config.audio_encoder), read_config(config.fusion))


def test_every_yaml_is_tested() -> None:
    assert OUTPUT_DIMS.keys() == {path.stem for path in (CONF / "audio_encoder").glob("[!_]*.yaml")}
    assert FUSIONS.keys() == {path.stem for path in (CONF / "fusion").glob("*.yaml")}


@pytest.mark.parametrize("name", OUTPUT_DIMS)
def test_encoder_yaml_builds_and_has_the_width(compose: Callable[..., DictConfig], name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(compose(f"audio_encoder={name}"))
        features = encoder(torch.zeros(2, encoder.frontend.num_samples), torch.zeros(2, dtype=torch.long))
    assert features.shape == (2, OUTPUT_DIMS[name] or encoder.output_dim)
    assert features.shape[1] == encoder.output_dim


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["htsat_tiny", "cnn14"])
def test_fusion_yaml_builds_into_the_encoder(compose: Callable[..., DictConfig], name: str, fusion: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(compose(f"audio_encoder={name}", f"fusion={fusion}"))
        views = encoder.fusion.num_views
        log_mel = torch.zeros(3, views, encoder.frontend.num_frames, encoder.frontend.n_mels)
    is_longer = torch.tensor([False, True, True]) & (views > 1)
    assert encoder.encode(log_mel, is_longer).shape == (3, OUTPUT_DIMS[name])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["htsat_nano", "cnn14_nano"])
def test_gradients_reach_every_parameter(compose: Callable[..., DictConfig], name: str, fusion: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(compose(f"audio_encoder={name}", f"fusion={fusion}"))
    encoder(*make_batch([12 * RATE, 11 * RATE])).square().sum().backward()
    assert all(value.grad is not None for value in encoder.parameters())
    weights = {key: value for key, value in encoder.named_parameters() if value.ndim > 1}  # a norm cancels some biases
    assert [key for key, value in weights.items() if not value.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["none", "mean", "channel_map"])
@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet"])
def test_timm_backbone_gives_its_width(name: str, fusion: str) -> None:
    encoder = TimmBackbone(name=name, frontend=make_frontend(), fusion=FUSIONS[fusion]()).eval()
    features = encoder(*make_batch(LENGTHS))
    assert features.shape == (len(LENGTHS), encoder.output_dim) and features.isfinite().all()


@pytest.mark.parametrize("name", ["convnext_nano", "vit_small_patch16_224", "resnet50"])
def test_timm_backbone_by_name(compose: Callable[..., DictConfig], name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(compose("audio_encoder=timm", f"audio_encoder.name={name}"))
        features = encoder(torch.zeros(2, encoder.frontend.num_samples), torch.zeros(2, dtype=torch.long))
    assert features.shape == (2, timm.create_model(name, num_classes=0).num_features)


# Errors


@pytest.mark.parametrize("fusion", MERGING)
def test_timm_backbone_refuses_to_merge_features(fusion: str) -> None:
    with pytest.raises(ValueError, match="fusion=none, mean or channel_map"):
        TimmBackbone(name="test_vit", frontend=make_frontend(), fusion=FUSIONS[fusion]())


def test_unknown_timm_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean convnext_nano?"):
        TimmBackbone(name="convnxt_nano", frontend=make_frontend())


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (HTSAT, {"frontend": make_frontend(n_mels=30)}, "n_mels=30 must divide image_size=64"),
        (HTSAT, {"patch_size": 64}, "multiple of patch_size=64"),
        (HTSAT, {"frontend": make_frontend(window=1.5)}, "151 frames does not fit into image_size=64.*128"),
        (HTSAT, {"num_heads": [2, 2, 2]}, "one entry for each stage"),
        (HTSAT, {"num_heads": [2, 3]}, "stage 2 has a width of 16"),
        (Cnn14, {"frontend": make_frontend(n_mels=16)}, "raise window or n_mels"),
        (Cnn14, {"frontend": make_frontend(window=0.2)}, "raise window or n_mels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(cls: type[LogMelEncoder], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_encoder(cls, **arguments)

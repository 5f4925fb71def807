"""Encoders on the log-mel treat clips independently, reject sizes that do not fit, and build from every yaml."""

from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
import timm
import torch
from device_reads import NoWaiting, WaitError
from omegaconf import DictConfig
from small_encoders import FUSIONS, RATE, SMALL, make_batch, make_encoder, make_frontend, randomize
from torch import Tensor
from torch.testing import assert_close

from clap.audio import SpecAugment
from clap.audio_encoder.base import LogMelEncoder, average_by_row, choose_frames
from clap.audio_encoder.cnn14 import Cnn14
from clap.audio_encoder.htsat import HTSAT
from clap.audio_encoder.timm_backbone import TimmBackbone
from clap.config import read_config
from clap.fusion import window_starts
from clap.parts import build_audio_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [3000, 39000, 16000, 16100, 30000]  # samples; the window has 16000, and 16100 is less than a hop more
CONF = Path(__file__).resolve().parents[1] / "conf"
OUTPUT_DIMS = {  # None: any width
    "htsat_tiny": 768,
    "htsat_tiny_audioset": 768,
    "htsat_base": 1024,
    "htsat_large": 2048,
    "htsat_nano": None,
    "cnn14": 2048,
    "cnn14_nano": None,
    "cnn14_mini": None,
    "timm": 320,
}
MERGING = ("daf", "aff", "iaff")
Golden = Callable[[str], tuple[dict, dict[str, Tensor]]]


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


def test_attention_without_subnormal_weights_has_the_published_values() -> None:
    encoder, batch = make_encoder(HTSAT), make_batch([16000, 9000])
    masks = [value for name, value in encoder.named_buffers() if name.endswith("attn_mask")]
    weights = torch.cat([mask.softmax(dim=-1).flatten() for mask in masks])
    assert ((weights == 0) | (weights > 1e-3)).all() and (weights == 0).any()

    def encode() -> list[Tensor]:
        encoder.zero_grad()
        features = encoder(*batch)
        features.square().sum().backward()
        return [features, *(parameter.grad for parameter in encoder.parameters())]

    own = encode()
    for mask in masks:
        mask.masked_fill_(mask < 0, -100.0)
    assert_close(encode(), own, rtol=0, atol=0)


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


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL)
def test_many_views_are_encoded_in_parts(
    cls: type[LogMelEncoder], fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, batch, sizes = make_encoder(cls, fusion), make_batch(LENGTHS), []
    expected, encode = encoder(*batch), encoder.encode
    monkeypatch.setattr("clap.fusion.ROWS", 2)
    monkeypatch.setattr("clap.audio_encoder.base.ROWS", 2)
    monkeypatch.setattr(encoder, "encode", lambda *views: sizes.append(len(views[0])) or encode(*views))
    assert_close(encoder(*batch), expected, rtol=1e-4, atol=1e-5)
    assert max(sizes) <= 2 and sum(sizes) >= len(LENGTHS)


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


@pytest.mark.parametrize(
    "read",
    [
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([1])],
        lambda x: x + torch.ones(3).to("meta"),
        lambda x: x.tolist(),
    ],
)
def test_waiting_for_the_device_is_found(read: Callable[[Tensor], object]) -> None:
    with pytest.raises((WaitError, RuntimeError)), NoWaiting():
        read(torch.zeros(3, device="meta"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL)
def test_step_does_not_wait_for_the_device(cls: type[LogMelEncoder], fusion: str, training: bool) -> None:
    augment = SpecAugment(time_mask=8, frequency_mask=8)
    dropout = {"drop_path": 0.1} if cls is HTSAT else {"dropout": 0.1}
    encoder = make_encoder(cls, fusion, spec_augment=augment, **dropout).to("meta")
    encoder.drop_frames(0.2)
    waveform, lengths = make_batch(LENGTHS)
    waveform = waveform.to("meta")
    with NoWaiting():
        encoder.train(training)(waveform, lengths).sum().backward()


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


# Augmentation


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL)
def test_dropped_frames_change_training_alone(
    cls: type[LogMelEncoder], fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, batch = make_encoder(cls, fusion), make_batch(LENGTHS)
    before, encode, frames = encoder(*batch), encoder.encode, []
    monkeypatch.setattr(encoder, "encode", lambda *views: frames.append(views[0].shape[2]) or encode(*views))
    encoder.drop_frames(0.25)
    assert torch.equal(encoder(*batch), before) and encoder.train()(*batch).isfinite().all()
    assert frames == [101, 76]


def test_kept_frames_are_in_order_and_of_each_row_alone() -> None:
    log_mel = torch.arange(20.0)[None, None, :, None].expand(6, 2, 20, 3)
    kept = choose_frames(log_mel, 15)
    assert kept.shape == (6, 2, 15, 3) and (kept.diff(dim=2) > 0).all()
    assert torch.equal(kept[:, 0], kept[:, 1]) and len({tuple(row[0, :, 0].tolist()) for row in kept}) > 1


@torch.no_grad()
def test_vision_transformer_drops_patches_in_training_alone() -> None:
    encoder = TimmBackbone(name="test_vit", frontend=make_frontend()).eval()
    tokens, batch = [], make_batch(LENGTHS[:2])
    encoder.backbone.blocks.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    encoder.drop_patches(0.5)
    for mode in (False, True):
        encoder.train(mode)(*batch)
    prefix = encoder.backbone.num_prefix_tokens
    assert tokens[1] - prefix == (tokens[0] - prefix) // 2


# Errors


def test_dropping_what_an_encoder_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_out=0.7 keeps 30 of 101 frames, and Cnn14 needs 32"):
        make_encoder(Cnn14).drop_frames(0.7)
    with pytest.raises(ValueError, match="HTSAT cannot drop patches; set augmentation.patch_out=0"):
        make_encoder(HTSAT).drop_patches(0.5)
    with pytest.raises(ValueError, match="audio_encoder.name=test_convnext cannot drop patches"):
        TimmBackbone(name="test_convnext", frontend=make_frontend()).drop_patches(0.5)


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

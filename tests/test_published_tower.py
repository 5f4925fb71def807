"""Audio encoders with weights of other checkpoints: audio_encoder.pretrained=..."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_conf import compose_plain
from torch import nn
from torch.testing import assert_close

from clap.audio_encoder.base import AudioEncoder
from clap.checkpoint import CONFIG
from clap.config.values import choose_weights
from clap.model import Clap
from clap.parts import build_audio_encoder
from clap.published.load import read_audio_tower
from clap.published.tower import OPTIONS

NONE, AFF = {"_target_": "clap.fusion.OneWindow"}, {"_target_": "clap.fusion.AFF", "_partial_": True, "reduction": 4}
FUSIONS = {
    "none": NONE,
    "mean": {"_target_": "clap.fusion.MeanOfWindows"},
    "channel_map": {"_target_": "clap.fusion.GlobalAndLocal", "merge": None},
    "aff": {"_target_": "clap.fusion.GlobalAndLocal", "merge": AFF},
    "iaff": {"_target_": "clap.fusion.GlobalAndLocal", "merge": AFF | {"_target_": "clap.fusion.IAFF"}},
}


@pytest.fixture(autouse=True)
def logged(caplog) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


@pytest.fixture
def write(golden, tmp_path) -> Callable[[str], Path]:
    """`write(name)` -> a stored checkpoint in the container of its publisher."""

    def write(name: str) -> Path:
        config, values = golden(name)
        weights = {key.removeprefix("ckpt/"): value for key, value in values.items() if key.startswith("ckpt/")}
        container = config["container"]
        if "state_dict_at" in container:
            torch.save({container["state_dict_at"]: weights}, tmp_path / f"{name}.pt")
            return tmp_path / f"{name}.pt"
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 3}}))
        return tmp_path / name

    return write


def node_for(option: str, **sizes: object) -> dict:
    """The node of a yaml, with other sizes."""
    return compose_plain([f"audio_encoder={option}"])["audio_encoder"] | sizes


SMALL = {  # sizes of the stored towers
    "htsat_audioset": ("htsat_tiny", {"embed_dim": 8, "depths": [1, 2, 2, 1], "num_heads": [2, 4, 4, 8]}),
    "laion_htsat_unfused": ("htsat_tiny", {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 12]}),
    "laion_htsat_fused_aff2d": ("htsat_tiny", {"embed_dim": 8, "depths": [1, 2, 2, 1], "num_heads": [2, 2, 4, 8]}),
    "hf_clap_unfused": ("htsat_tiny", {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 12]}),
    "msclap_2023": ("htsat_tiny", {"embed_dim": 8, "depths": [1, 2, 2, 1], "num_heads": [2, 4, 4, 8]}),
    "msclap_2022": ("cnn14", {"width": 3}),
    "panns_cnn14_32k": ("cnn14", {"width": 3}),
    "laion_pann_unfused": ("cnn14", {"width": 3}),
}


def build_from(source: object, name: str, fusion: str = "none", **changes: object) -> AudioEncoder:
    option, sizes = SMALL[name]
    node = node_for(option, **sizes) | changes | {"pretrained": str(source)}
    return build_audio_encoder(node, FUSIONS[fusion])


# Choice of the weights


def test_pretrained_selects_the_weights():
    assert choose_weights("audio_encoder", False, "laion/clap-htsat-unfused") is None
    assert choose_weights("audio_encoder", True, "laion/clap-htsat-unfused") == "laion/clap-htsat-unfused"
    assert choose_weights("audio_encoder", "tower.pt", "laion/clap-htsat-unfused") == "tower.pt"


def test_pretrained_without_a_name_is_refused():
    with pytest.raises(ValueError, match="pretrained=true, but audio_encoder.name is null"):
        build_audio_encoder(node_for("htsat_large", pretrained=True), NONE)


@pytest.mark.parametrize("option", ["htsat_nano", "htsat_large", "cnn14_nano", "cnn14_mini"])
def test_unpublished_encoders_have_no_name(option):
    assert node_for(option)["name"] is None


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_options_have_the_sizes_of_their_yamls(option):
    assert OPTIONS[option].items() <= node_for(option).items()


def test_missing_weights_are_named():
    message = "laion/clap-htsat-unfused: no such file or folder, and not found on.*without a network.*checkpoint=FILE"
    with pytest.raises(FileNotFoundError, match=message):
        build_audio_encoder(node_for("htsat_tiny", pretrained=True), NONE)


def test_timm_rejects_a_path():
    with pytest.raises(ValueError, match="pretrained=tower.pt: with audio_encoder=timm, set it to true or false"):
        build_audio_encoder(node_for("timm", pretrained="tower.pt"), NONE)


# Loading


@pytest.mark.parametrize("name", sorted(SMALL))
def test_tower_of_every_family_is_loaded(golden, write, name):
    encoder = build_from(write(name), name, "aff" if "aff" in name else "none")
    _, values = golden(name)
    stored = {key: value for key, value in values.items() if key.startswith("ckpt/")}
    for own, source_state in (("bn0.weight", r"(bn0|batch_norm)\.weight$"), (r"fc1.bias", r"\.?fc1\.bias$")):
        found = [value for key, value in stored.items() if re.search(source_state, key) and "projection" not in key]
        if own in encoder.state_dict():
            assert any(torch.equal(encoder.state_dict()[own], value) for value in found)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "waves", "output"),
    [
        ("panns_cnn14_32k", ["w32k/short", "w32k/silence"], "embedding"),
        ("panns_cnn14_16k", ["w16k/short", "w16k/long"], "embedding"),
        ("htsat_audioset", ["w32k/short", "w32k/equal"], "latent_output"),
    ],
)
def test_audioset_tower_gives_its_stored_embeddings(golden, write, name, waves, output):
    _, values = golden(name)
    config, stored = golden("waves")
    source = write(name)
    node, fusion, _ = read_audio_tower(str(source))  # with the frontend that the weights were trained with
    encoder = build_audio_encoder(node | {"pretrained": str(source)}, fusion).eval()
    for wave in waves:
        derived = config["derived"].get(wave, {"source": wave, "first_samples": None})
        waveform = stored[f"wave/{derived['source']}"][None, : derived["first_samples"]]
        normalised = encoder.bn0(encoder.frontend(waveform)[:, None].transpose(1, 3)).transpose(1, 3)
        embedding = encoder.encode(normalised, torch.zeros(1, dtype=torch.bool))
        assert_close(embedding[0], values[f"out/{output}/{wave.split('/')[1]}"], atol=1e-4, rtol=1e-4)


def save_tiny(tiny_clap: Callable[..., Clap], folder: Path, *overrides: str) -> Clap:
    clap = tiny_clap(*overrides).eval()
    for value in clap.audio_encoder.state_dict().values():
        if value.ndim == 1:
            value.uniform_(0.1, 0.3)
    clap.save_pretrained(folder)
    return clap


def build_tiny(tiny_config: Callable[..., dict], source: object, *overrides: str) -> nn.Module:
    return Clap.from_config(tiny_config(*overrides, f"audio_encoder.pretrained={source}")).audio_encoder


def test_tower_of_an_own_checkpoint_is_loaded(tiny_clap, tiny_config, tmp_path):
    clap = save_tiny(tiny_clap, tmp_path / "saved")
    encoder = build_tiny(tiny_config, tmp_path / "saved", "embed_dim=8")
    assert_close(encoder.state_dict(), clap.audio_encoder.state_dict(), atol=0, rtol=0)


def test_saved_model_does_not_need_the_source(tiny_clap, tiny_config, tmp_path):
    save_tiny(tiny_clap, tmp_path / "first")
    second = Clap.from_config(tiny_config(f"audio_encoder.pretrained={tmp_path / 'first'}"))
    second.tokenizer.train(["a dog barks"])
    second.save_pretrained(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    again = Clap.from_ckpt(tmp_path / "second")
    assert again.config["audio_encoder"]["pretrained"] is False
    assert_close(again.state_dict(), second.state_dict(), atol=0, rtol=0)


def test_checkpoint_config_does_not_load_other_weights(tiny_clap, tmp_path):
    clap = save_tiny(tiny_clap, tmp_path / "saved")
    config = yaml.safe_load((tmp_path / "saved" / CONFIG).read_text())
    config["audio_encoder"]["pretrained"] = config["text_encoder"]["pretrained"] = "someone/else"
    (tmp_path / "saved" / CONFIG).write_text(yaml.safe_dump(config))
    assert_close(Clap.from_ckpt(tmp_path / "saved").state_dict(), clap.state_dict(), atol=0, rtol=0)


# Differences


def test_other_sizes_are_refused(tiny_clap, tiny_config, tmp_path):
    save_tiny(tiny_clap, tmp_path / "saved")
    with pytest.raises(ValueError) as error:
        build_tiny(tiny_config, tmp_path / "saved", "audio_encoder.depths=[1,1,2]")
    assert "pretrained=" in str(error.value) and "depths=[1, 1, 1], the config has [1, 1, 2]" in str(error.value)


def test_option_with_the_sizes_is_named(monkeypatch, golden, write):
    option, sizes = SMALL["hf_clap_unfused"]
    monkeypatch.setitem(OPTIONS, option, OPTIONS[option] | {key: sizes[key] for key in ("embed_dim", "depths")})
    with pytest.raises(ValueError, match="embed_dim=12, the config has 128; .*; audio_encoder=htsat_tiny has"):
        build_audio_encoder(node_for("htsat_base", pretrained=str(write("hf_clap_unfused"))), NONE)


def test_another_architecture_is_refused(write):
    with pytest.raises(ValueError, match="_target_=clap.audio_encoder.cnn14.Cnn14, the config has .*HTSAT"):
        build_audio_encoder(node_for("htsat_tiny", pretrained=str(write("panns_cnn14_32k"))), NONE)


def test_other_mel_bins_are_refused(tiny_clap, tiny_config, tmp_path):
    save_tiny(tiny_clap, tmp_path / "saved")
    with pytest.raises(ValueError, match="frontend.n_mels=32, the config has 64"):
        build_tiny(tiny_config, tmp_path / "saved", "audio_encoder.frontend.n_mels=64")


def test_frontend_of_the_config_is_used_and_differences_are_logged(write, caplog):
    encoder = build_from(write("msclap_2023"), "msclap_2023")
    assert encoder.frontend.sample_rate == 48000
    assert "sample_rate=48000 (the weights were trained with 44100)" in caplog.text
    assert "(the weights were trained with clap.published.frontends.MSClap2023LogMel)" in caplog.text
    assert "f_max=" not in caplog.text


def test_same_frontend_is_not_logged(tiny_clap, tiny_config, tmp_path, caplog):
    save_tiny(tiny_clap, tmp_path / "saved")
    build_tiny(tiny_config, tmp_path / "saved")
    assert "trained with" not in caplog.text and "audio_encoder: weights from" in caplog.text


@pytest.mark.parametrize("fusion", ["aff", "iaff", "daf", "channel_map"])
@pytest.mark.parametrize("source", ["none", "aff"])
def test_fusion_missing_in_the_weights_is_random(tiny_clap, tiny_config, tmp_path, caplog, source, fusion):
    clap = save_tiny(tiny_clap, tmp_path / "saved", f"fusion={source}")
    encoder = build_tiny(tiny_config, tmp_path / "saved", f"fusion={fusion}")
    own, source_state = encoder.state_dict(), clap.audio_encoder.state_dict()
    fresh = {key for key in own if key not in source_state or not torch.equal(own[key], source_state[key])}
    if source == fusion:
        assert not fresh and "random weights in" not in caplog.text
    else:
        layer = "trunk.patch_embed.proj" if fusion == "channel_map" else "trunk.patch_embed.local_proj"
        assert f"{layer}.weight" in fresh and "audio_encoder: random weights in" in caplog.text
        assert all(key.startswith("trunk.patch_embed.") for key in fresh)


def test_averaging_windows_adds_no_weights(tiny_clap, tiny_config, tmp_path, caplog):
    clap = save_tiny(tiny_clap, tmp_path / "saved")
    encoder = build_tiny(tiny_config, tmp_path / "saved", "fusion=mean")
    assert_close(encoder.state_dict(), clap.audio_encoder.state_dict(), atol=0, rtol=0)
    assert "random weights in" not in caplog.text

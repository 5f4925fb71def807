"""Intermediate outputs of the published code, reproduced from files in their published formats."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import published_models as models
import pytest
import torch
from conftest import FFT_ROUNDING
from pinned_starts import pinned_starts
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clap import Clap
from clap.audio_encoder.base import AudioEncoder
from clap.fusion import Views

pytestmark = pytest.mark.usefixtures("one_thread")

Golden = Callable[[str], tuple[dict, dict[str, Tensor]]]
UNFUSED = (
    "laion_htsat_unfused",
    "laion_pann_unfused",
    "hf_clap_unfused",
    "msclap_2022",
    "msclap_2023",
    "msclap_clapcap",
)
FUSED = (
    "laion_htsat_fused_aff2d",
    "laion_htsat_fused_iaff2d",
    "laion_pann_fused_aff2d",
    "hf_clap_fused",
    "customclap_htsat_iaff",
    "customclap_cnn14_iaff",
)
NAMES = {  # stage -> its names in the stored files
    "encoded": ("out/audio/encoder_embedding", "out/mixed/encoder_embedding", "out/audio_pooler"),
    "projected": ("out/audio/projected", "out/mixed/projected", "out/prefix"),
    "audio": ("out/audio/normalised", "out/mixed/normalised", "out/audio_embeds", "out/prefix_normalised"),
    "pooled": ("out/text/pooler_output", "out/text/pooled", "out/text_pooler"),
    "projected_text": ("out/text/projected",),
    "text": ("out/text/normalised", "out/text_embeds"),
    "similarity": ("out/logits_per_audio", "out/similarity"),
}
NORMALISED = {"rtol": 0, "atol": 1e-5}
STAGE = {"rtol": 1e-5, "atol": 2e-5}
TOLERANCES = {"audio": NORMALISED, "text": NORMALISED, "similarity": {"rtol": 0, "atol": 2e-4}}
FLOAT32_SPECTRUM = ("laion_htsat_fused", "laion_pann_fused", "customclap")


class Stored(NamedTuple):
    """A stored file and the model that its checkpoint loads as."""

    config: dict[str, Any]
    values: dict[str, Tensor]
    clap: Clap


@pytest.fixture(scope="module")
def stored(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stored]:
    loaded: dict[str, Stored] = {}

    def load(name: str) -> Stored:
        if name not in loaded:
            config, values = golden(name)
            path, settings = write(tmp_path_factory.mktemp(name), config, values)
            loaded[name] = Stored(config, values, Clap.from_ckpt(path, settings=settings))
        return loaded[name]

    return load


def write(folder: Path, config: dict, values: dict[str, Tensor]) -> tuple[Path, dict[str, int]]:
    """Write a checkpoint in its published format; return its path and the settings that are not in its tensors."""
    weights = {key.removeprefix("ckpt/"): value for key, value in values.items() if key.startswith("ckpt/")}
    if "config_json" in config:
        text = config["config_json"]["text_config"]
        names = {"num_attention_heads": text["heads"], "layer_norm_eps": text["layer_norm_eps"], "hidden_act": "gelu"}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config["config_json"] | {"text_config": names}))
        (folder / "preprocessor_config.json").write_text(json.dumps(config["preprocessor_config"]))
        return folder, {}
    container = config["container"]
    extra = {key: {} for key in container.get("top_level", ()) if key != "..."}
    torch.save(extra | {container["state_dict_at"]: weights}, folder / "a.pt")
    text = config.get("text")
    heads = "n_head" if text and text["model"] == "gpt2" else "num_attention_heads"
    return folder / "a.pt", {f"text_encoder.model.{heads}": text["heads"]} if text else {}


def read_waves(golden: Golden, names: list[str]) -> list[Tensor]:
    config, values = golden("waves")
    waves = []
    for name in names:
        derived = config["derived"].get(name, {"source": name, "first_samples": None})
        waves.append(values[f"wave/{derived['source']}"][: derived["first_samples"]])
    return waves


def batch_names(config: dict, batch: str = "mixed") -> list[str]:
    return config.get("batch") or [f"{config['wave_group']}/{name}" for name in config["batches"][batch]]


def choose_starts(config: dict) -> int | list[int]:
    return config["chunk_starts_long"] if "chunk_starts_long" in config else config.get("long_crop_start", 0)


def tolerance(stage: str, name: str) -> dict[str, float]:
    """Bounds of a stage of a stored model; see FFT_ROUNDING."""
    bounds = TOLERANCES.get(stage, STAGE)
    heard = name.startswith(FLOAT32_SPECTRUM) and stage in ("encoded", "projected", "audio")
    return bounds | {"atol": bounds["atol"] * FFT_ROUNDING} if heard else bounds


def expected(values: dict[str, Tensor], stage: str) -> Tensor | None:
    return next((values[name] for name in NAMES[stage] if name in values), None)


# Models


@torch.no_grad()
@pytest.mark.parametrize("name", UNFUSED + FUSED)
def test_model_reproduces_each_stage(stored: Callable[[str], Stored], golden: Golden, name: str) -> None:
    config, values, clap = stored(name)
    waves = read_waves(golden, batch_names(config))
    lengths = torch.tensor([len(wave) for wave in waves])
    with pinned_starts(clap.audio_encoder, choose_starts(config)):
        found = {"encoded": clap.audio_encoder(nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths)}
        found["audio"] = clap.get_audio_embeddings(waves, clap.sample_rate)
    found["projected"] = clap.audio_projection(found["encoded"])
    if clap.text_encoder is not None:
        ids, mask = values["in/input_ids"], values["in/attention_mask"].bool()
        found["pooled"] = clap.text_encoder(ids, mask)
        found["projected_text"] = clap.text_projection(found["pooled"])
        found["text"] = clap.embed_text(ids, mask)
        found["similarity"] = clap.compute_similarity(found["audio"], found["text"])
    compared = 0
    for stage, value in found.items():
        if (reference := expected(values, stage)) is not None:
            assert_close(value, reference, **tolerance(stage, name), msg=lambda text, stage=stage: f"{stage}: {text}")
            compared += 1
    assert compared >= (3 if clap.text_encoder else 2)


@torch.no_grad()
@pytest.mark.parametrize("batch", ["none_longer", "single_long"])
@pytest.mark.parametrize("name", ["laion_htsat_fused_aff2d", "laion_htsat_fused_iaff2d"])
def test_other_batches_of_fused_models(stored: Callable[[str], Stored], golden: Golden, name: str, batch: str) -> None:
    config, values, clap = stored(name)
    waves = read_waves(golden, batch_names(config, batch))
    with pinned_starts(clap.audio_encoder, choose_starts(config)):
        audio = clap.get_audio_embeddings(waves, clap.sample_rate)
    assert_close(audio, values[f"out/{batch}/normalised"], **tolerance("audio", name))


@torch.no_grad()
@pytest.mark.parametrize("name", ["hf_clap_unfused", "hf_clap_fused"])
def test_log_mel_equals_that_of_the_hugging_face_extractor(
    stored: Callable[[str], Stored], golden: Golden, name: str
) -> None:
    config, values, clap = stored(name)
    waves = read_waves(golden, batch_names(config))
    lengths = torch.tensor([len(wave) for wave in waves])
    encoder = clap.audio_encoder
    with pinned_starts(encoder, choose_starts(config)):
        views = encoder.fusion(nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, encoder.frontend)
    if "fused" in name and "unfused" not in name:
        assert_close(views.log_mel[1], values["out/input_features_long"], rtol=0, atol=1e-3)  # dB
        assert_close(views.is_longer[:, None], values["out/is_longer"].bool())
    else:
        assert_close(views.log_mel[:2, 0], values["out/input_features_first2"], rtol=0, atol=1e-3)


@torch.no_grad()
def test_flag_on_a_short_clip_is_set_by_the_caller(stored: Callable[[str], Stored], golden: Golden) -> None:
    """If no clip is longer, transformers flags a random one; unflagged embeddings are equal."""
    config, values, clap = stored("hf_clap_fused")
    waves, encoder = read_waves(golden, config["none_longer_batch"]), clap.audio_encoder
    assert_close(clap.get_audio_embeddings(waves, 48000), values["out/none_longer_noflag/audio_embeds"], **NORMALISED)
    lengths = torch.tensor([len(wave) for wave in waves])
    views = encoder.fusion(nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, encoder.frontend)
    views.is_longer = values["out/none_longer_flag0/is_longer"].bool().flatten()
    flagged = F.normalize(clap.audio_projection(encoder.encode_views(views)), dim=-1)
    assert_close(flagged, values["out/none_longer_flag0/audio_embeds"], **NORMALISED)


def test_laion_and_hugging_face_have_equal_weights(stored: Callable[[str], Stored]) -> None:
    for laion, hugging_face in (
        ("laion_htsat_unfused", "hf_clap_unfused"),
        ("laion_htsat_fused_aff2d", "hf_clap_fused"),
    ):
        assert_close(stored(laion).clap.state_dict(), stored(hugging_face).clap.state_dict(), rtol=0, atol=0)


@torch.no_grad()
def test_stages_inside_htsat(stored: Callable[[str], Stored]) -> None:
    _, values, clap = stored("laion_htsat_unfused")
    encoder, log_mel = clap.audio_encoder, values["out/logmel"][:1, None]
    trunk = encoder.trunk
    normalised = encoder.bn0(log_mel.transpose(1, 3)).transpose(1, 3)
    assert_close(normalised[0, 0], values["out/bn0_first"], **STAGE)
    image = encoder.fold(normalised)
    assert_close(image[0], values["out/stage/image_first"], **STAGE)
    x = trunk.patch_embed(image, None, None)
    assert_close(x[0].flatten(0, 1), values["out/stage/patch_embed_first"], **STAGE)
    for i, layer in enumerate(trunk.layers):
        x = layer.blocks(layer.downsample(x))
        if i < 3:  # in the published code a stage includes the downsampling after it
            halved = trunk.layers[i + 1].downsample(x)
            assert_close(halved[0].flatten(0, 1), values[f"out/stage/layer{i}_first"], **STAGE)
    assert_close(x[0].flatten(0, 1), values["out/stage/layer3_first"], **STAGE)


# Audio towers of taggers


def load_tower(golden: Golden, folder: Path, name: str) -> tuple[dict, dict[str, Tensor], AudioEncoder]:
    config, values = golden(name)
    return config, values, models.load_tower(write(folder, config, values)[0])


def encode(encoder: AudioEncoder, log_mel: Tensor) -> Tensor:
    """log_mel (n, time, n_mels) -> (n, width)."""
    row = torch.zeros(len(log_mel), dtype=torch.long)
    return encoder.encode_views(Views(log_mel[:, None], row.bool(), row))


@torch.no_grad()
@pytest.mark.parametrize("name", ["panns_cnn14_32k", "panns_cnn14_16k"])
def test_panns_towers(golden: Golden, tmp_path: Path, name: str) -> None:
    config, values, encoder = load_tower(golden, tmp_path, name)
    assert encoder.sample_rate == config["sample_rate"]
    for clip, wave in zip(config["inputs"], read_waves(golden, config["inputs"]), strict=True):
        key = clip.split("/")[1]
        log_mel = encoder.frontend(wave[None])
        if key == "short":
            difference = (log_mel[0] - values["out/logmel/short"]).abs()
            assert difference.max() < 0.1 and difference.mean() < 2e-3  # dB
        features = encode(encoder, log_mel)[0]
        assert_close(features, values[f"out/embedding/{key}"], **STAGE)
        head = [values[f"ckpt/fc_audioset.{part}"] for part in ("weight", "bias")]
        assert_close(F.linear(features, *head).sigmoid(), values[f"out/clipwise/{key}"], **STAGE)


@torch.no_grad()
def test_htsat_tower(golden: Golden, tmp_path: Path) -> None:
    config, values, encoder = load_tower(golden, tmp_path, "htsat_audioset")
    for clip, wave in zip(config["inputs"], read_waves(golden, config["inputs"]), strict=True):
        key = clip.split("/")[1]
        assert_close(encode(encoder, encoder.frontend(wave[None]))[0], values[f"out/latent_output/{key}"], **STAGE)
    short = encoder.frontend(read_waves(golden, ["w32k/short"])[0][None])
    repeated = short.repeat(1, 1024 // short.shape[1], 1)
    assert_close(encode(encoder, repeated)[0], values["out/infer_mode_latent/short"], **STAGE)


@torch.no_grad()
def test_more_frames_than_fit_are_averaged_over_crops(stored: Callable[[str], Stored], golden: Golden) -> None:
    """MS-CLAP averages crops of 689 frames every 344 for a clip with more than 1024."""
    config, values, clap = stored("msclap_2023")
    (wave,), start = read_waves(golden, ["w44k/xlong"]), config["long_crop_start"]
    crop = wave[start : start + 7 * 44100]
    log_mel = clap.audio_encoder.frontend(torch.cat([crop, crop[:44100]])[None])
    crops = [log_mel[:, first : first + 689] for first in range(0, log_mel.shape[1] - 689 - 1, 344)]
    features = encode(clap.audio_encoder, torch.cat(crops)).mean(dim=0)
    assert_close(features, values["out/over1024/embedding"], **STAGE)


# Text towers of other kinds, inserted into a model

TEXT_HEADS = {  # kind -> (the model that contains it, key in that model)
    "roberta": ("laion_pann_unfused", lambda key: f"module.{key}"),
    "bert": ("laion_pann_unfused", lambda key: f"module.{key}"),
    "gpt2": ("msclap_2023", lambda key: f"caption_encoder.{key}"),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXT_HEADS)
def test_text_tower_reproduces_each_stage(golden: Golden, tmp_path: Path, kind: str) -> None:
    host, name_key = TEXT_HEADS[kind]
    config, values = golden(host)
    _, towers = golden("text_heads")
    own = re.compile(r"ckpt/(module\.text_|caption_encoder\.)")
    values = {key: value for key, value in values.items() if not own.match(key)}
    tower = {key: value for key, value in towers.items() if key.startswith(f"ckpt/{kind}/")}
    values |= {f"ckpt/{name_key(key.removeprefix(f'ckpt/{kind}/'))}": value for key, value in tower.items()}
    path, settings = write(tmp_path, config, values)
    clap = Clap.from_ckpt(path, settings=settings)
    mask = towers[f"in/{kind}/attention_mask"].bool()
    pooled = clap.text_encoder(towers[f"in/{kind}/input_ids"], mask)
    projected = clap.text_projection(pooled)
    stages = {"pooler_output": pooled, "pooled": pooled, "projected": projected, "normalised": F.normalize(projected)}
    found = {name: towers[f"out/{kind}/{name}"] for name in stages if f"out/{kind}/{name}" in towers}
    assert len(found) >= 2
    for name, expected in found.items():
        assert_close(stages[name], expected, **STAGE, msg=lambda text, name=name: f"{name}: {text}")

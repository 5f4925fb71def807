"""Published checkpoints through the public API: outputs equal to the published code, or an error of one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import published_models as models
import pytest
import soundfile
import torch
from conftest import FFT_ROUNDING
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from clap import Clap
from clap.published.load import read_audio_tower, read_published
from clap.published.sources import is_published

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # on unit-norm embeddings


@pytest.fixture(scope="module")
def outputs() -> dict[str, Tensor]:
    return load_file(models.OUTPUTS)


def save(path: Path, weights: dict[str, Tensor], **options: object) -> Path:
    torch.save({"state_dict": weights}, path, **options)
    return path


def halve(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def make_weights(name: str) -> dict[str, Tensor]:
    return models.fill_shapes((models.CLAPS | models.TOWERS)[name][0])


# Equal outputs


@pytest.mark.parametrize("name", models.CLAPS)
def test_embeddings_are_those_of_the_published_code(tmp_path: Path, outputs: dict[str, Tensor], name: str) -> None:
    for kind, value in models.embed(models.load_clap(tmp_path, name)).items():
        rounding = FFT_ROUNDING if kind == "audio" and name.startswith("customclap") else 1.0
        assert_close(value, outputs[f"{name}/{kind}"], rtol=0, atol=TOLERANCE["atol"] * rounding)


@pytest.mark.parametrize("name", models.TOWERS)
def test_features_of_towers_are_those_of_the_published_code(
    tmp_path: Path, outputs: dict[str, Tensor], name: str
) -> None:
    features = models.encode(models.load_tower(models.write_checkpoint(tmp_path, name)))
    assert_close(features, outputs[f"{name}/features"], rtol=1e-5, atol=2e-5)


def test_audio_tower_of_a_clap_is_read(tmp_path: Path) -> None:
    path = models.write_checkpoint(tmp_path, "msclap_2023")
    node, fusion_node, weights = read_audio_tower(str(path))
    assert node["_target_"].endswith("HTSAT") and fusion_node["_target_"].endswith("OneWindow")
    assert all(key.startswith("audio_encoder.") for key in weights)


def test_audio_tower_is_not_loaded_as_a_clap(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains only an audio encoder .* audio_encoder.pretrained"):
        Clap.from_ckpt(models.write_checkpoint(tmp_path, "panns_32k"))


def test_captioner_has_no_text_embeddings(tmp_path: Path) -> None:
    clap = models.load_clap(tmp_path, "clapcap")
    with pytest.raises(ValueError, match="has no text encoder"):
        clap.get_text_embeddings(["a dog barks"])


# Independence of the batch


@pytest.mark.parametrize("windows", [None, "mean"])
@pytest.mark.parametrize("name", ["laion_htsat_roberta", "laion_htsat_aff_roberta", "laion_pann_aff_roberta"])
def test_embedding_of_a_file_does_not_depend_on_the_batch(tmp_path: Path, name: str, windows: str | None) -> None:
    clap = models.load_clap(tmp_path, name)
    clap.set_windows(windows)
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for i, (path, seconds) in enumerate(zip(paths, (0.7, 10.0, 10.003, 13.1), strict=True)):
        soundfile.write(path, models.make_waveform(seconds, 48000, 150.0 * (i + 1)), 48000, subtype="FLOAT")
    alone = torch.cat([clap.get_audio_embeddings([path]) for path in paths])
    for order in ([3, 0, 1, 2], [0, 3, 3, 1], [2, 1, 0, 3]):  # first, in the middle twice, last
        embeddings = clap.get_audio_embeddings([paths[i] for i in order])
        assert_close(embeddings, alone[order], rtol=0, atol=1e-6)
    assert_close(clap.get_audio_embeddings(paths[3:]), alone[3:], rtol=0, atol=0)


# Containers and legacy keys


@pytest.fixture(scope="module")
def laion() -> dict[str, Tensor]:
    return make_weights("laion_htsat_aff_roberta")


@pytest.fixture(scope="module")
def expected(laion: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    path = save(tmp_path_factory.mktemp("laion") / "a.pt", laion)
    return Clap.from_ckpt(path).state_dict()


def test_bare_state_dict_without_prefix(tmp_path: Path, laion: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.save({key.removeprefix("module."): value for key, value in laion.items()}, tmp_path / "a.pt")
    assert_close(Clap.from_ckpt(tmp_path / "a.pt").state_dict(), expected, rtol=0, atol=0)


def test_file_of_an_old_torch(tmp_path: Path, laion: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    path = save(tmp_path / "a.pt", laion, _use_new_zipfile_serialization=False)
    assert_close(Clap.from_ckpt(path).state_dict(), expected, rtol=0, atol=0)


def test_weights_of_16_bits(tmp_path: Path, laion: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    halved = {key: value if key.endswith("melW") else halve(value) for key, value in laion.items()}
    own = Clap.from_ckpt(save(tmp_path / "a.pt", halved)).state_dict()
    assert all(value.dtype == expected[key].dtype for key, value in own.items())
    assert_close(own, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("laion_htsat_aff_roberta", {"module.text_branch.embeddings.position_ids": (1, 110)}),
        ("laion_htsat_aff_roberta", {"module.text_branch.embeddings.token_type_ids": (1, 110)}),
        ("laion_htsat_aff_roberta", {"module.audio_branch.layers.0.blocks.0.attn_mask": (64, 64, 64)}),
        (
            "laion_htsat_aff_roberta",
            {
                f"module.audio_branch.spectrogram_extractor.stft.conv_{part}.weight": (513, 1, 1024)
                for part in ("real", "imag")
            },
        ),
        ("msclap_2022", {"caption_encoder.base.embeddings.position_ids": (1, 110)}),
        (
            "msclap_2023",
            {
                "caption_encoder.base.h.0.attn.bias": (1, 1, 90, 90),
                "caption_encoder.base.h.1.attn.masked_bias": (),
            },
        ),
        ("customclap_htsat_iaff_gpt2", {"text_encoder.base.h.0.attn.bias": (1, 1, 90, 90)}),
    ],
)
def test_legacy_buffers_are_ignored(tmp_path: Path, name: str, extra: dict[str, tuple[int, ...]]) -> None:
    weights = make_weights(name)
    without = Clap.from_ckpt(save(tmp_path / "a.pt", weights)).state_dict()
    extended = save(tmp_path / "b.pt", weights | {key: torch.ones(shape) for key, shape in extra.items()})
    assert_close(Clap.from_ckpt(extended).state_dict(), without, rtol=0, atol=0)


@pytest.mark.parametrize("part", ["relative_position_index", "num_batches_tracked", "melW", "head.", "tscam_conv"])
def test_unused_keys_are_optional(
    tmp_path: Path, laion: dict[str, Tensor], expected: dict[str, Tensor], part: str
) -> None:
    path = save(tmp_path / "a.pt", {key: value for key, value in laion.items() if part not in key})
    assert_close(Clap.from_ckpt(path).state_dict(), expected, rtol=0, atol=0)


# Strictness

SPOILT = {
    "laion_htsat_aff_roberta": (
        "module.audio_branch.bn0.weight",
        "module.audio_branch.patch_embed.proj.weight",
        "module.audio_branch.patch_embed.mel_conv2d.weight",
        "module.audio_branch.patch_embed.fusion_model.local_att.0.weight",
        "module.audio_branch.layers.0.blocks.0.attn.relative_position_bias_table",
        "module.audio_branch.layers.1.blocks.1.attn.qkv.bias",
        "module.audio_branch.layers.2.downsample.reduction.weight",
        "module.text_branch.embeddings.word_embeddings.weight",
        "module.text_branch.embeddings.token_type_embeddings.weight",
        "module.text_branch.encoder.layer.0.intermediate.dense.weight",
        "module.text_branch.pooler.dense.weight",
        "module.audio_projection.0.weight",
        "module.audio_projection.2.bias",
        "module.text_projection.2.weight",
        "module.logit_scale_a",
    ),
    "msclap_2022": (
        "audio_encoder.base.conv_block1.conv1.weight",
        "audio_encoder.base.conv_block6.bn2.running_var",
        "audio_encoder.base.fc1.weight",
        "audio_encoder.projection.layer_norm.weight",
        "caption_encoder.projection.linear1.weight",
        "logit_scale",
    ),
    "msclap_2023": (
        "caption_encoder.base.wte.weight",
        "caption_encoder.base.wpe.weight",
        "caption_encoder.base.h.0.mlp.c_fc.weight",
        "caption_encoder.base.h.1.attn.c_attn.bias",
        "caption_encoder.base.ln_f.bias",
    ),
}


@pytest.mark.parametrize("spoil", ["absent", "one column more", "flat", "integers"])
@pytest.mark.parametrize("name", SPOILT)
def test_any_tensor_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, name: str, spoil: str) -> None:
    weights = make_weights(name)
    for key in SPOILT[name]:
        value = weights[key]
        spoilt = {
            "one column more": torch.cat([value, value[..., :1]], dim=-1) if value.ndim else value.repeat(2),
            "flat": value.flatten() if value.ndim > 1 else value[None],
            "integers": value.long(),
        }
        rest = {other: tensor for other, tensor in weights.items() if other != key}
        path = save(tmp_path / "a.pt", rest if spoil == "absent" else rest | {key: spoilt[spoil]})
        with pytest.raises(ValueError, match=f"^{path}: ") as error:
            Clap.from_ckpt(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000, key


def test_missing_and_unexpected_keys_are_grouped(tmp_path: Path) -> None:
    weights = make_weights("msclap_2023")
    weights = {
        key: value for key, value in weights.items() if not key.endswith(("ln_1.weight", "projection.linear2.weight"))
    }
    weights |= {f"audio_encoder.base.htsat.extra.{i}.weight": torch.zeros(2) for i in range(30)}
    with pytest.raises(ValueError) as error:
        Clap.from_ckpt(save(tmp_path / "a.pt", weights))
    message = str(error.value)
    assert "4 missing (audio_projection.linear2.weight, 2 text_encoder.transformer.h.*.ln_1.weight" in message
    assert "30 unexpected (30 audio_encoder.extra.*.weight)" in message


def test_key_of_a_prefix_twice_is_refused(tmp_path: Path) -> None:
    weights = make_weights("msclap_2023")
    weights["audio_encoder.base.bn0.weight"] = weights["audio_encoder.base.htsat.bn0.weight"]
    with pytest.raises(ValueError, match="are the same weight, audio_encoder.bn0.weight"):
        Clap.from_ckpt(save(tmp_path / "a.pt", weights))


def test_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text_encoder.tokeniser=x: .*did you mean text_encoder.tokenizer"):
        Clap.from_ckpt(models.write_checkpoint(tmp_path, "msclap_2022"), settings={"text_encoder.tokeniser": "x"})


def test_settings_replace_values_of_the_config(tmp_path: Path) -> None:
    path = models.write_checkpoint(tmp_path, "laion_htsat_roberta")
    clap = Clap.from_ckpt(path, settings={"audio_encoder.frontend.window": 5.0, "text_encoder.tokenizer": "mine"})
    assert clap.window == 5.0 and clap.text_encoder.tokenizer.name == "mine"


def test_family_config_and_weights_are_returned(tmp_path: Path) -> None:
    family, config, weights = read_published(str(models.write_checkpoint(tmp_path, "laion_htsat_iaff_roberta")))
    assert family == "laion"
    assert config["fusion"]["merge"]["shared_global_att"] is True
    assert config["audio_encoder"]["depths"] == [1, 2, 1, 1]
    assert weights["audio_projection.linear1.weight"].shape == (8, 64)


def test_files_hub_folders_and_hub_names_are_published(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    (tmp_path / "own").mkdir()
    (tmp_path / "a.pt").touch()
    assert is_published(tmp_path / "hf") and is_published(tmp_path / "a.pt")
    assert is_published("laion/clap-htsat-unfused") and is_published("lukewys/laion_clap/630k-best.pt")
    assert not is_published(tmp_path / "own") and not is_published(tmp_path / "absent")
    assert not is_published("outputs/train/day/time")


# Full size


@pytest.mark.slow  # up to two gigabytes, written and read
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", models.FULL_SIZE)
def test_full_size_adds_little_more_than_its_weights(tmp_path: Path, name: str, half: bool) -> None:
    """The optimizer state in the file, twice the size of the weights, must not be read."""
    shapes, wrapper = models.FULL_SIZE[name]
    weights = {key: torch.full(shape, 0.01) for key, shape in shapes.items()}
    for key in shapes:
        if key.endswith(("melW", "num_batches_tracked")):
            weights[key] = models.fill_tensor(key, shapes[key])
    size = sum(value.nbytes for value in weights.values())
    if half:
        weights = {key: value if key.endswith("melW") else halve(value) for key, value in weights.items()}
    moments = {} if half else {i: torch.zeros(value.shape) for i, value in enumerate(weights.values())}
    torch.save(
        {wrapper: weights, "optimizer": {"state": {"exp_avg": moments, "exp_avg_sq": moments}}}, tmp_path / "a.pt"
    )
    del weights, moments
    seconds, peak = load_elsewhere(tmp_path / "a.pt")
    assert seconds < 10 and peak < 1.2 * size, (seconds, peak / size)


def load_elsewhere(path: Path) -> tuple[float, float]:
    """Seconds, and bytes that the process grew by at most, until each weight was read once."""
    command = [sys.executable, Path(__file__).with_name("published_models.py"), "measure", path]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return tuple(json.loads(printed.splitlines()[-1]))

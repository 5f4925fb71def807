"""Export as Hugging Face ClapModel folders: equal outputs in transformers, and equal tensors when read back."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CAPTIONS, make_tone
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForMaskedLM, ClapModel, ClapProcessor

from clap.checkpoint import CONFIG, HUGGING_FACE, TOKENIZER, WEIGHTS
from clap.model import Clap

# Supported by ClapModel: RoBERTa with its pooler, HTS-AT whose last stage is a window wide.
ROBERTA = {
    "_target_": "clap.text_encoder.TextEncoder",
    "pretrained": False,
    "tokenizer": "train",
    "pooling": "pooler",
    "model": {
        "model_type": "roberta",
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
    },
}
GPT2 = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2}
CNN14 = {
    "_target_": "clap.audio_encoder.cnn14.Cnn14",
    "width": 2,
    "frontend": {
        "_target_": "clap.audio.LogMelSpectrogram",
        "sample_rate": 16000,
        "window": 1.0,
        "hop_length": 160,
        "f_max": 8000,
    },
}
ALIKE = (
    "audio_encoder.window_size=4",
    "audio_encoder.frontend.n_mels=64",
    "audio_encoder.frontend.hop_length=160",
    "audio_encoder.frontend.amin=1e-10",
)


@pytest.fixture(scope="module")
def make(tiny_config) -> Callable[..., Clap]:
    """`make("fusion=aff", text_encoder={...})` -> a tiny Clap that ClapModel supports, except for the given parts."""

    def make(*overrides: str, **parts: Any) -> Clap:
        torch.manual_seed(0)
        config = tiny_config(*ALIKE, *overrides)
        clap = Clap.from_config(config | {"text_encoder": ROBERTA} | parts)
        if clap.tokenizer.needs_training:
            clap.tokenizer.train(list(CAPTIONS))
        return clap

    return make


def randomize(clap: Clap) -> Clap:
    """Random statistics, biases and scales, which are not identities."""
    generator = torch.Generator().manual_seed(0)
    for value in clap.state_dict().values():
        if value.is_floating_point() and value.ndim:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.1 if value.ndim == 1 else value)
    return clap.eval()


@pytest.fixture(scope="module", params=["none", "aff"])
def clap(request, make) -> Clap:
    mel_scale = {"none": "slaney", "aff": "htk"}[request.param]
    return randomize(make(f"fusion={request.param}", f"audio_encoder.frontend.mel_scale={mel_scale}"))


@pytest.fixture(scope="module")
def folder(clap, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "clap"
    clap.save_pretrained(folder)
    return folder


def copy_as_huggingface(golden: Callable, name: str, folder: Path) -> dict[str, Tensor]:
    """Write a stored Hugging Face checkpoint as its folder; its tensors."""
    config, values = golden(name)
    weights = {key.removeprefix("ckpt/"): value for key, value in values.items() if key.startswith("ckpt/")}
    text = config["config_json"]["text_config"]
    stated = {"num_attention_heads": text["heads"], "layer_norm_eps": text["layer_norm_eps"]}
    folder.mkdir()
    save_file(weights, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config["config_json"] | {"text_config": stated}))
    (folder / "preprocessor_config.json").write_text(json.dumps(config["preprocessor_config"]))
    return weights


def load_laion(golden: Callable, name: str, folder: Path) -> Clap:
    config, values = golden(name)
    weights = {key.removeprefix("ckpt/"): value for key, value in values.items() if key.startswith("ckpt/")}
    torch.save({config["container"]["state_dict_at"]: weights}, folder / "laion.pt")
    settings = {"text_encoder.model.num_attention_heads": config["text"]["heads"]}
    return Clap.from_ckpt(folder / "laion.pt", settings=settings)


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def find_lines(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(start)]


# In transformers


def test_run_from_weights_without_pooler_is_exported(make: Callable[..., Clap], tmp_path: Path):
    make().tokenizer.save(tmp_path / "roberta")
    masked_lm = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**ROBERTA["model"]))
    masked_lm.save_pretrained(tmp_path / "roberta")
    source = str(tmp_path / "roberta")
    clap = make(text_encoder=ROBERTA | {"pretrained": source, "tokenizer": source})
    clap.save_pretrained(tmp_path / "clap")
    model = ClapModel.from_pretrained(tmp_path / "clap" / HUGGING_FACE).eval()
    ids, mask = clap.text_encoder.tokenize(list(CAPTIONS))
    with torch.no_grad():
        pooled = model.text_model(input_ids=ids, attention_mask=mask.long()).pooler_output
        assert_close(pooled, clap.text_encoder.eval()(ids, mask), atol=1e-5, rtol=1e-5)


def test_transformers_loads_every_key(folder):
    model, report = ClapModel.from_pretrained(folder / HUGGING_FACE, output_loading_info=True)
    assert not any(report.values())
    assert_identical(model.state_dict(), load_file(folder / HUGGING_FACE / WEIGHTS))


@torch.no_grad()
def test_transformers_gives_the_same_outputs(clap, folder):
    model = ClapModel.from_pretrained(folder / HUGGING_FACE).eval()
    frontend = clap.audio_encoder.frontend
    waveform = torch.stack([torch.from_numpy(make_tone(300.0 * (i + 1), 2.5, seed=i)) for i in range(3)])
    views = clap.audio_encoder.fusion(waveform, torch.tensor([16_000, 40_000, 8_000]), frontend)
    ids, mask = clap.tokenizer(list(CAPTIONS))
    is_longer = views.is_longer[:, None]
    output = model(input_features=views.log_mel, is_longer=is_longer, input_ids=ids, attention_mask=mask.long())
    features = clap.audio_encoder.encode_views(views)
    audio, text = nn.functional.normalize(clap.audio_projection(features), dim=-1), clap.embed_text(ids, mask)
    assert_close(output.audio_model_output.pooler_output, features, atol=1e-5, rtol=1e-5)
    assert_close(output.audio_embeds, audio, atol=1e-5, rtol=0)
    assert_close(output.text_embeds, text, atol=1e-5, rtol=0)
    assert_close(output.logits_per_audio, clap.compute_similarity(audio, text), atol=1e-4, rtol=1e-5)
    assert_close(output.logits_per_text, output.logits_per_audio.T, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_processor_gives_the_embeddings_of_a_clip_and_a_caption(clap, folder):
    model = ClapModel.from_pretrained(folder / HUGGING_FACE).eval()
    processor = ClapProcessor.from_pretrained(folder / HUGGING_FACE)
    waveforms = [make_tone(300.0 * (i + 1), 0.3 * (i + 1), seed=i) for i in range(3)]
    inputs = processor(audio=waveforms, text=list(CAPTIONS), sampling_rate=16_000, return_tensors="pt", padding=True)
    inputs["is_longer"] = torch.zeros(3, 1, dtype=torch.bool)  # the extractor marks one short clip as longer
    output = model(**inputs)
    assert_close(output.audio_embeds, clap.get_audio_embeddings(waveforms, 16_000), atol=1e-4, rtol=0)
    assert_close(output.text_embeds, clap.get_text_embeddings(CAPTIONS), atol=1e-5, rtol=0)


# Round trips


def test_own_folder_gives_the_same_model(clap, folder):
    again = Clap.from_ckpt(folder)
    assert_identical(again.state_dict(), clap.state_dict())
    assert_close(again.get_text_embeddings(CAPTIONS), clap.get_text_embeddings(CAPTIONS), atol=0, rtol=0)


def test_huggingface_folder_gives_the_same_model(clap, folder, tones):
    again = Clap.from_ckpt(folder / HUGGING_FACE)
    assert_identical(again.state_dict(), clap.state_dict())
    assert_close(again.get_audio_embeddings(tones), clap.get_audio_embeddings(tones), atol=1e-6, rtol=0)
    assert_close(again.get_text_embeddings(CAPTIONS), clap.get_text_embeddings(CAPTIONS), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["hf_clap_unfused", "hf_clap_fused"])
def test_stored_huggingface_weights_are_written_unchanged(golden, tmp_path, name):
    weights = copy_as_huggingface(golden, name, tmp_path / "published")
    Clap.from_ckpt(tmp_path / "published").save_pretrained(tmp_path / "saved")
    assert_identical(load_file(tmp_path / "saved" / HUGGING_FACE / WEIGHTS), weights)
    Clap.from_ckpt(tmp_path / "saved").save_pretrained(tmp_path / "again")  # via the format of this package
    assert_identical(load_file(tmp_path / "again" / HUGGING_FACE / WEIGHTS), weights)


@pytest.mark.parametrize(
    ("laion", "huggingface"),
    [("laion_htsat_unfused", "hf_clap_unfused"), ("laion_htsat_fused_aff2d", "hf_clap_fused")],
)
def test_laion_weights_are_written_as_those_of_huggingface(golden, tmp_path, laion, huggingface):
    load_laion(golden, laion, tmp_path).save_pretrained(tmp_path / "saved")
    weights = copy_as_huggingface(golden, huggingface, tmp_path / "published")
    assert_identical(load_file(tmp_path / "saved" / HUGGING_FACE / WEIGHTS), weights)
    config = json.loads((tmp_path / "saved" / HUGGING_FACE / "config.json").read_text())
    assert config["text_config"]["layer_norm_eps"] == 1e-5


@torch.no_grad()
def test_stored_outputs_come_from_transformers(golden, tmp_path):
    _, values = golden("hf_clap_unfused")
    copy_as_huggingface(golden, "hf_clap_unfused", tmp_path / "published")
    Clap.from_ckpt(tmp_path / "published").save_pretrained(tmp_path / "saved")
    model = ClapModel.from_pretrained(tmp_path / "saved" / HUGGING_FACE).eval()
    features = values["out/input_features_first2"][:, None]
    output = model(
        input_features=features, input_ids=values["in/input_ids"], attention_mask=values["in/attention_mask"]
    )
    assert_close(output.audio_embeds, values["out/audio_embeds"][:2], atol=1e-5, rtol=0)
    assert_close(output.text_embeds, values["out/text_embeds"], atol=1e-5, rtol=0)
    assert_close(output.logits_per_text, values["out/logits_per_text"][:, :2], atol=2e-4, rtol=0)


def test_second_logit_scale_equals_the_first_after_training(golden, tmp_path):
    weights = copy_as_huggingface(golden, "hf_clap_unfused", tmp_path / "published")
    assert weights["logit_scale_t"] != weights["logit_scale_a"]
    clap = Clap.from_ckpt(tmp_path / "published")
    clap.logit_scale.data.fill_(math.log(50))
    clap.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / HUGGING_FACE / WEIGHTS)
    assert saved["logit_scale_a"].item() == saved["logit_scale_t"].item() == pytest.approx(math.log(50))


# Unsupported parts


@pytest.mark.parametrize(
    ("overrides", "parts", "named"),
    [
        ([], {"audio_encoder": CNN14}, "Cnn14"),
        (["fusion=iaff"], {}, "fusion by IAFF"),
        (["fusion=channel_map"], {}, "fusion by channels (channel_map)"),
        (["audio_encoder.window_size=8"], {}, "a last stage 4 tokens wide, not a multiple of window_size=8"),
        ([], {"text_encoder": ROBERTA | {"pooling": "mean"}}, "text_encoder.pooling=mean (only pooler)"),
        ([], {"text_encoder": ROBERTA | {"model": GPT2, "pooling": "last"}}, "a gpt2 text encoder (only roberta)"),
        (["projection._target_=clap.model.ResidualProjection"], {}, "ResidualProjection"),
    ],
    ids=["cnn14", "iaff", "channel_map", "window", "pooling", "gpt2", "projection"],
)
def test_part_without_counterpart_is_named(make, tmp_path, caplog, overrides, parts, named):
    clap = make(*overrides, **parts)
    with caplog.at_level(logging.INFO, logger="clap.saving"):
        clap.save_pretrained(tmp_path / "saved")
    assert find_lines(caplog, "no Hugging Face folder") == [
        f"no Hugging Face folder is written; ClapModel has no counterpart of: {named}"
    ]
    assert not (tmp_path / "saved" / HUGGING_FACE).exists()
    assert_identical(Clap.from_ckpt(tmp_path / "saved").state_dict(), clap.state_dict())


def test_frontend_without_counterpart_is_named(make, tmp_path, caplog):
    frontend = ("int16=true", "amin=1e-5", "mel_scale=htk", "window=1.5")
    clap = make(*(f"audio_encoder.frontend.{value}" for value in frontend), "fusion=mean")
    clap.save_pretrained(tmp_path / "saved")
    (line,) = find_lines(caplog, "transformers' ClapFeatureExtractor does not support")
    for part in ("int16=True", "amin=1e-05", "mel_scale=htk", "window=1.5 s, not an integer", "fusion=mean"):
        assert part in line


def test_huggingface_folder_is_optional(clap, tmp_path):
    clap.save_pretrained(tmp_path / "saved", huggingface=False)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [CONFIG, WEIGHTS, TOKENIZER]


# The folder


def test_checkpoint_is_replaced(clap, tmp_path):
    clap.save_pretrained(tmp_path / "saved")
    clap.save_pretrained(tmp_path / "saved", huggingface=False)
    assert not (tmp_path / "saved" / HUGGING_FACE).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_folder_with_other_files_is_refused(clap, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt; give a new folder"):
        clap.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Without tokenizer


@pytest.fixture
def without_tokenizer(folder, tmp_path) -> Path:
    """A Hugging Face folder without tokenizer files, whose `roberta-base` is not available."""
    published = tmp_path / "published"
    published.mkdir()
    for name in ("config.json", "preprocessor_config.json", WEIGHTS):
        (published / name).write_bytes((folder / HUGGING_FACE / name).read_bytes())
    return published


MISSING = r"no tokenizer 'roberta-base'.*Clap.from_ckpt\(\.\.\., settings=\{'text_encoder.tokenizer': FOLDER\}\)"


def test_missing_tokenizer_is_named_with_its_setting(without_tokenizer):
    clap = Clap.from_ckpt(without_tokenizer)
    with pytest.raises(FileNotFoundError, match=MISSING):
        clap.get_text_embeddings(["a dog barks"])
    with pytest.raises(FileNotFoundError, match=MISSING):
        clap.collate  # noqa: B018


def test_model_without_tokenizer_is_saved_for_audio(without_tokenizer, tmp_path, tones, caplog):
    clap = Clap.from_ckpt(without_tokenizer)
    clap.save_pretrained(tmp_path / "saved")
    (line,) = find_lines(caplog, "saved without a tokenizer")
    assert "'roberta-base'" in line and "settings={'text_encoder.tokenizer': FOLDER}" in line
    assert not (tmp_path / "saved" / TOKENIZER).exists()
    again = Clap.from_ckpt(tmp_path / "saved")
    assert_close(again.get_audio_embeddings(tones), clap.get_audio_embeddings(tones), atol=1e-6, rtol=0)
    with pytest.raises(FileNotFoundError, match=MISSING):
        again.get_text_embeddings(["a dog barks"])


def test_local_tokenizer_replaces_the_missing_one(clap, folder, without_tokenizer, tmp_path):
    settings = {"text_encoder.tokenizer": str(folder / TOKENIZER)}
    again = Clap.from_ckpt(without_tokenizer, settings=settings)
    assert_close(again.get_text_embeddings(CAPTIONS), clap.get_text_embeddings(CAPTIONS), atol=0, rtol=0)
    again.save_pretrained(tmp_path / "saved")
    saved = Clap.from_ckpt(tmp_path / "saved")
    assert_close(saved.get_text_embeddings(CAPTIONS), clap.get_text_embeddings(CAPTIONS), atol=0, rtol=0)


def test_lost_trained_tokenizer_is_an_error(tiny_clap, tmp_path):
    tiny_clap().save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved" / TOKENIZER).iterdir():
        path.unlink()
    (tmp_path / "saved" / TOKENIZER).rmdir()
    with pytest.raises(FileNotFoundError, match="tokenizer is missing from this checkpoint"):
        Clap.from_ckpt(tmp_path / "saved")


def test_model_without_text_encoder_is_saved(tiny_clap, tmp_path, tones):
    clap = tiny_clap().eval()
    clap.text_encoder = clap.text_projection = clap.config["text_encoder"] = None
    clap.save_pretrained(tmp_path / "saved")
    again = Clap.from_ckpt(tmp_path / "saved")
    assert_close(again.get_audio_embeddings(tones), clap.get_audio_embeddings(tones), atol=1e-6, rtol=0)
    for call in (lambda: again.get_text_embeddings(["a dog barks"]), lambda: again.collate):
        with pytest.raises(ValueError, match="this model has no text encoder"):
            call()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"fft_window_size": 2**30}, "its config has .*n_fft=1073741824; at most 32768"),
        ("config.json", {"audio_config": {"spec_size": 2**16}}, "its config has .*image_size=65536; at most 4096"),
        ("config.json", {"text_config": {"hidden_act": "${oc.env:PATH}"}}, "has the interpolation '..oc.env:PATH.'"),
    ],
    ids=["n_fft", "image_size", "interpolation"],
)
def test_folder_with_huge_or_unresolved_values_is_refused(
    folder: Path, tmp_path: Path, file: str, change: dict, message: str
):
    copied = Path(shutil.copytree(folder / "huggingface", tmp_path / "copied"))
    values = json.loads((copied / file).read_text())
    for key, value in change.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    (copied / file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        Clap.from_ckpt(copied)

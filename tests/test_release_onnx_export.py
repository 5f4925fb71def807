"""`python -m clap export`: a folder that runs without torch, and what is refused."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CAPTIONS, make_tone, run_command
from torch.testing import assert_close

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from clap.model import Clap
from clap.release import onnx_export, parity
from clap.release.portable_tokenizer import CAPTIONS as CHECKED
from clap.release.portable_tokenizer import write_tokenizer
from clap.tokenizer import Tokenizer

DOCS = Path(__file__).parents[1] / "docs" / "release.md"
WITHOUT = "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'clap'])\n"  # importing them fails
SAVE = "\nnp.savez('found.npz', audio=audio_embedding, text=text_embedding, logits=logits)\n"


@pytest.fixture(scope="module")
def small(tiny_config, tmp_path_factory) -> Path:
    """A checkpoint with Cnn14, whose export is the fastest."""
    config = tiny_config()
    frontend = config["audio_encoder"]["frontend"]
    config["audio_encoder"] = {"_target_": "clap.audio_encoder.cnn14.Cnn14", "width": 2, "frontend": frontend}
    torch.manual_seed(0)
    clap = Clap.from_config(config)
    clap.tokenizer.train(list(CAPTIONS))
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    clap.save_pretrained(folder, huggingface=False)
    return folder


@pytest.fixture(scope="module")
def exported(small: Path) -> Path:
    folder = small.parent / "exported"
    run_command("export", "--checkpoint", small, "--output", folder, "--licence", "mit")
    return folder


def test_exported_folder_runs_without_torch(small: Path, exported: Path, tmp_path: Path):
    """The example of the docs, on a stereo recording of more than two windows."""
    clap = Clap.from_ckpt(small)
    tones = [make_tone(frequency, 2.3, seed=1) for frequency in (300.0, 800.0)]
    soundfile.write(tmp_path / "dog.wav", np.stack(tones, axis=1), clap.sample_rate, subtype="FLOAT")
    (tmp_path / "exported").symlink_to(exported)
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-P", "-c", WITHOUT + example + SAVE], cwd=tmp_path, check=True)
    with np.load(tmp_path / "found.npz") as file:
        found = {name: torch.from_numpy(value) for name, value in file.items()}
    audio = clap.get_audio_embeddings([tmp_path / "dog.wav"])
    text = clap.get_text_embeddings(["a dog barks", "rain on a roof"])
    assert_close(found["audio"], audio, atol=1e-5, rtol=0)
    assert_close(found["text"], text, atol=1e-5, rtol=0)
    assert_close(found["logits"], clap.compute_similarity(audio, text), atol=1e-3, rtol=0)


def test_config_describes_the_folder(small: Path, exported: Path):
    config = json.loads((exported / "config.json").read_text())
    clap = Clap.from_ckpt(small)
    assert config["sample_rate"] == config["window_samples"] == 16_000 and config["embed_dim"] == 16
    assert config["logit_scale"] == pytest.approx(clap.logit_scale.exp().item())
    assert config["longer_clips"] == "the middle window" and config["licence"] == "mit"
    assert 0 <= max(config["largest_difference"].values()) < 1e-5
    assert sorted(path.name for path in exported.iterdir()) == [
        "audio.onnx",
        "config.json",
        "text.onnx",
        "tokenizer.json",
    ]


def test_graphs_have_no_paths_of_this_machine(exported: Path):
    content = b"".join(path.read_bytes() for path in exported.iterdir())
    assert str(DOCS.parents[1]).encode() not in content and b"site-packages" not in content


def test_other_embeddings_leave_nothing(small: Path, exported: Path, tmp_path: Path, monkeypatch):
    """A graph of other weights than the model's."""
    clap = Clap.from_ckpt(small)
    torch.nn.init.normal_(clap.audio_projection.linear2.weight)
    clap.text_encoder = None
    monkeypatch.setattr(onnx_export, "trace", lambda *arguments: shutil.copy(exported / "audio.onnx", arguments[-1]))
    with pytest.raises(ValueError, match="exported audio encoder differ by .* allowed are 0.0001; nothing is written"):
        onnx_export.export_onnx(clap, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_model_without_text_encoder_has_an_audio_graph_only(small: Path, exported: Path, tmp_path: Path, monkeypatch):
    clap = Clap.from_ckpt(small)
    clap.text_encoder = None
    monkeypatch.setattr(onnx_export, "trace", lambda *arguments: shutil.copy(exported / "audio.onnx", arguments[-1]))
    assert "text" not in onnx_export.export_onnx(clap, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["audio.onnx", "config.json"]


def test_folder_with_other_files_is_kept(small: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds notes.txt; give a new folder"):
        run_command("export", "--checkpoint", small, "--output", tmp_path)


def test_missing_packages_are_named(small: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="onnxruntime not installed.*pip install onnx onnxscript onnxruntime"):
        run_command("export", "--checkpoint", small, "--output", tmp_path / "new")


def test_part_without_translation_is_named(small: Path, tmp_path: Path):
    clap = Clap.from_ckpt(small)
    tower = onnx_export.TextTower(clap)
    tower.encoder.forward = lambda ids, mask: torch.zeros(int(ids.max()), 16)  # depends on values
    with pytest.raises(ValueError, match="TextEncoder cannot be exported to ONNX"):
        onnx_export.trace(
            tower,
            (torch.ones(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.long)),
            {name: {0: "batch", 1: "tokens"} for name in ("token_ids", "token_mask")},
            "text_embedding",
            tmp_path / "text.onnx",
        )


@pytest.mark.parametrize("append_end", [True, False])
def test_tokenizer_gives_the_ids_of_the_model(append_end: bool, tmp_path: Path):
    tokenizer = Tokenizer("train", vocab_size=300, max_length=20, append_end=append_end)
    tokenizer.train(CAPTIONS)
    portable = write_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    for captions in (list(CHECKED), list(CAPTIONS), ["a"]):
        ids, mask = tokenizer(captions)
        rows = portable.encode_batch(captions)
        assert [row.ids for row in rows] == ids.tolist()
        assert [row.attention_mask for row in rows] == mask.long().tolist()


def test_suffix_is_part_of_the_tokenizer(tmp_path: Path):
    """As in MS-CLAP 2023, whose suffix is an end token after a space."""
    tokenizer = Tokenizer("train", vocab_size=300, max_length=20, append_end=True)
    tokenizer.train(CAPTIONS)
    tokenizer.save(tmp_path / "files")
    ended = Tokenizer(str(tmp_path / "files"), vocab_size=300, max_length=20, suffix=" </s>")
    portable = write_tokenizer(ended, tmp_path / "tokenizer.json")
    assert portable.encode(CAPTIONS[0]).ids == ended([CAPTIONS[0]])[0][0].tolist()
    assert portable.encode(CAPTIONS[0]).ids[-1] == ended.backend.eos_token_id


def test_sounds_are_of_all_lengths():
    sounds = parity.make_sounds(16_000, 1.0)
    assert [len(sound) for sound in sounds] == [640, 8_800, 16_000, 16_048, 22_400, 43_200, 8_800]
    assert all(sound.abs().max() > 0.01 for sound in sounds[1:-1]) and not sounds[-1].any()

"""Configs are read as plain data."""

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from clap.config import read_config


def test_read_config_reads_exponents_as_floats(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lr: 1e-3\n")
    assert math.isclose(read_config(tmp_path / "run.yaml")["lr"], 0.001)


def test_read_config_resolves_interpolations(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("embed_dim: 8\naudio_encoder:\n  width: ${embed_dim}\n")
    assert read_config(str(tmp_path / "run.yaml")) == {"embed_dim": 8, "audio_encoder": {"width": 8}}


def test_read_config_returns_plain_data() -> None:
    config = read_config(OmegaConf.create({"a": {"b": [1]}}))
    assert type(config) is dict and type(config["a"]["b"]) is list


def test_read_config_copies_a_mapping() -> None:
    source = {"a": {"b": 1}}
    read_config(source)["a"]["b"] = 2
    assert source == {"a": {"b": 1}}


def test_read_config_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.yaml does not exist"):
        read_config(tmp_path / "nowhere.yaml")


BROKEN = {
    "list": "- 1\n",
    "syntax": "a: [1\n",
    "reference": "a: ${b}\n",
    "object": "a: !!python/object/apply:os.getcwd []\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_read_config_names_an_invalid_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match="broken.yaml"):
        read_config(tmp_path / "broken.yaml")


def test_read_config_names_a_binary_file(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="model.yaml"):
        read_config(tmp_path / "model.yaml")

"""A run with `init_from` trains, and records, the parts of the checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clap.config.overrides import VERSION_BASE
from clap.model import Clap
from clap.study.trained_model import name_options, open_clap, record_config


@pytest.fixture
def clap(tiny_clap) -> Clap:
    """The model of a checkpoint, with sizes of no option."""
    return tiny_clap("embed_dim=24")


@pytest.fixture
def cfg(clap: Clap) -> Iterator[DictConfig]:
    """The composed config of a run with other options, inside of Hydra."""
    lines = ["audio_encoder=cnn14_nano", "text_encoder=roberta_nano", "init_from=source"]
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        config = compose("config", lines, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        yield DictConfig({key: value for key, value in config.items() if key != "hydra"})
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize("option", ["cnn14", "htsat_nano"])
def test_option_of_a_checkpoint_is_found_by_its_sizes(cfg: DictConfig, option: str):
    lines = [f"audio_encoder={option}", "text_encoder=gpt2_nano", "fusion=mean", "audio_encoder.frontend.window=2.0"]
    with torch.device("meta"):
        clap = Clap.from_config(compose("config", lines))
    assert name_options(cfg, clap) == {"audio_encoder": option, "text_encoder": "gpt2_nano", "fusion": "mean"}


def test_model_of_other_sizes_is_named_by_class_and_size(cfg: DictConfig, clap: Clap):
    names = name_options(cfg, clap)
    assert names["audio_encoder"].startswith("HTSAT-0.") and names["text_encoder"].startswith("gpt2-0.")


def test_chosen_option_keeps_its_name(cfg: DictConfig):
    clap = Clap.from_config(cfg)
    assert name_options(cfg, clap) == {"audio_encoder": "cnn14_nano", "text_encoder": "roberta_nano", "fusion": "none"}


def test_record_holds_the_parts_of_the_model(cfg: DictConfig, clap: Clap, tmp_path: Path):
    config = record_config(cfg, clap, tmp_path)
    assert (config["embed_dim"], config["audio_encoder"]) == (24, clap.config["audio_encoder"])
    assert config["init_from"] == "source" and config["optimizer"]["lr"]


def test_resumed_run_has_the_parts_of_its_own_checkpoint(clap: Clap, tiny_config, tmp_path: Path):
    clap.text_encoder.tokenizer.train(["a dog barks"])
    clap.save(tmp_path)
    again = open_clap(tiny_config() | {"init_from": "gone"}, resume_from=tmp_path, overrides=["seed=0"])
    assert again.embed_dim == 24 and not again.tokenizer.needs_training
    other = open_clap(tiny_config() | {"init_from": "gone"}, resume_from=tmp_path, overrides=["embed_dim=8"])
    assert other.embed_dim == tiny_config()["embed_dim"]

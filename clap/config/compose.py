"""Composes the yamls of conf/ without starting a run."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from clap.config import find_conf_dir, read_config
from clap.config.overrides import VERSION_BASE, check_overrides


def compose_config(overrides: Sequence[str]) -> dict:
    """The config of `train.py` with these overrides (`audio_encoder=cnn14`), as plain data.

    Raises:
        ValueError: an override has a misspelt option or key, or a wrong type.
    """
    return read_config(compose_yamls(overrides, folder=find_conf_dir(), name="config"))


def compose_yamls(overrides: Sequence[str], *, folder: Path, name: str) -> DictConfig:
    """The yaml `name` of a folder with checked overrides; interpolations stay unresolved."""
    check_overrides(["--cfg", "job", *overrides], config_dir=folder, config_name=name)
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        return compose(name, list(overrides))

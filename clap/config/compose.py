"""Composes the packaged yamls without starting a run."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from clap.config import read_config
from clap.config.overrides import VERSION_BASE, check_overrides


def find_conf_dir() -> Path:
    """The folder of the yamls: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())


def compose_config(overrides: Sequence[str]) -> dict:
    """The config of `train.py` with these overrides (`audio_encoder=cnn14`), as plain data.

    Raises:
        ValueError: a misspelt option, key or type, as on the command line.
    """
    return read_config(compose_yamls(overrides, folder=find_conf_dir(), name="config"))


def compose_yamls(overrides: Sequence[str], *, folder: Path, name: str) -> DictConfig:
    """The yaml `name` of a folder with overrides, checked as on the command line; its references are kept."""
    check_overrides(["--cfg", "job", *overrides], config_dir=folder, config_name=name)
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        return compose(name, list(overrides))

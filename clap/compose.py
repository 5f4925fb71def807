"""Compose the packaged yamls without starting a run: what `python -m clap config` prints, Clap.from_config builds."""

import argparse
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from clap.command_line import VERSION_BASE, check_overrides


def find_yamls() -> Path:
    """The folder of the yamls: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())


def compose_config(overrides: list[str]) -> dict:
    """The config of `train.py` with these overrides (`audio_encoder=cnn14`), as plain data.

    Raises:
        ValueError: a misspelt option, key or type, as on the command line.
    """
    folder = find_yamls()
    check_overrides(["--cfg", "job", *overrides], config_dir=folder, config_name="config")
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        return OmegaConf.to_container(compose("config", overrides), resolve=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap config`."""
    parser.add_argument("overrides", nargs="*", help="as for train.py: audio_encoder=cnn14 embed_dim=512")


def run(args: argparse.Namespace) -> None:
    """Print the composed config as yaml."""
    print(OmegaConf.to_yaml(OmegaConf.create(compose_config(args.overrides))), end="")

"""`python -m clap config`: print a composed config for `Clap.from_config`."""

import argparse

from omegaconf import OmegaConf

from clap.config.compose import compose_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap config`."""
    parser.add_argument("overrides", nargs="*", help="overrides as for train.py: audio_encoder=cnn14 embed_dim=512")


def run(args: argparse.Namespace) -> None:
    """Print the composed config as yaml."""
    print(OmegaConf.to_yaml(OmegaConf.create(compose_config(args.overrides))), end="")

"""Addresses and checksums of the corpora that can be downloaded, one yaml per corpus."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clap.config import read_config
from clap.config.values import suggest

ADDRESSES = Path(__file__).resolve().parent


def list_downloads() -> list[str]:
    """Names of the corpora that can be downloaded."""
    return sorted(path.stem for path in ADDRESSES.glob("*.yaml"))


def check_downloadable(name: str) -> None:
    """Check that a corpus has a yaml in this folder.

    Raises:
        ValueError: there is no yaml for it.
    """
    if name not in (known := list_downloads()):
        raise ValueError(f"{name!r} cannot be downloaded, only {', '.join(known)}{suggest(name, known)}")


def read_addresses(name: str) -> dict[str, Any]:
    """The content of clap/download/NAME.yaml.

    Raises:
        ValueError: there is no yaml for it.
    """
    check_downloadable(name)
    return resolve_addresses(OmegaConf.load(ADDRESSES / f"{name}.yaml"))


def resolve_addresses(config: DictConfig) -> dict[str, Any]:
    """Convert a composed yaml to plain data.

    Raises:
        ValueError: `lists` has no address for the version.
    """
    if "lists" in config and config.version not in config.lists:
        raise ValueError(f"version={config.version} is not one of {', '.join(config.lists)}; set version")
    return read_config(config)

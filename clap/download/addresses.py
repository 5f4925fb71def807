"""Addresses and checksums of the corpora that can be downloaded, a yaml each."""

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
    """Refuse a corpus that has no yaml here.

    Raises:
        ValueError: it has none.
    """
    if name not in (known := list_downloads()):
        raise ValueError(f"{name!r} cannot be downloaded, only {', '.join(known)}{suggest(name, known)}")


def read_addresses(name: str) -> dict[str, Any]:
    """What clap/download/NAME.yaml says.

    Raises:
        ValueError: no such corpus.
    """
    check_downloadable(name)
    return resolve_addresses(OmegaConf.load(ADDRESSES / f"{name}.yaml"))


def resolve_addresses(config: DictConfig) -> dict[str, Any]:
    """A composed yaml as plain data; its version must be one that has an address.

    Raises:
        ValueError: it is not.
    """
    if "lists" in config and config.version not in config.lists:
        raise ValueError(f"version={config.version} is not one of {', '.join(config.lists)}")
    return read_config(config)

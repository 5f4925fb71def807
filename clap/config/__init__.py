"""Configs as plain data, read without importing torch or Hydra."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


def read_config(source: str | Path | Mapping) -> dict:
    """Read a yaml file, a mapping or a DictConfig into plain data, with its `${...}` interpolations resolved.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the source is not a yaml mapping of plain data, or an interpolation does not resolve.
    """
    name = "the config" if isinstance(source, Mapping) else str(source)
    if not isinstance(source, Mapping) and not Path(source).is_file():
        raise FileNotFoundError(
            f"config file {name} does not exist; give a yaml as printed by `python train.py --cfg job`"
        )
    try:
        config = OmegaConf.load(source) if isinstance(source, str | Path) else source
        config = config if OmegaConf.is_config(config) else OmegaConf.create(config)
        if not OmegaConf.is_dict(config):
            raise ValueError(f"{name} contains a {type(config).__name__}; give a mapping of keys to values")
        return OmegaConf.to_container(config, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is not a valid config: {' '.join(str(error).split())}") from error


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings and lists, at every level."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, value
        yield from flatten(value, key)


def find_absent(node: Mapping[str, Any], prefix: str = "") -> str | None:
    """The required keys without a value, as text: "dataset.root is missing"; None if all are given."""
    absent = [f"{prefix}{key}" for key, value in flatten(node) if value == "???"]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing" if absent else None


def find_conf_dir() -> Path:
    """The folder conf/: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())

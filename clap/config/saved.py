"""Configs from untrusted files, such as checkpoints: plain data of limited size, without aliases and interpolations.

A yaml of a few lines can describe gigabytes by aliases of aliases, and `${oc.env:NAME}` reads an environment variable.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clap.config import flatten, read_config

MAX_BYTES = 2**20  # a saved config has 2,000
MAX_DEPTH = 32
MAX_INTEGER = 2**24  # above every size, such as the tokens of a vocabulary or the clips of a set


def read_saved_yaml(path: Path) -> dict[str, Any]:
    """Read a yaml that a checkpoint contains.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a mapping of plain data, too large, or has anchors, aliases or interpolations.
    """
    depth = 0
    try:
        for event in yaml.parse(read_bounded(path), Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None) is not None:
                raise ValueError(f"{path}: refused, it has the yaml anchor or alias {event.anchor!r}; write values out")
            if isinstance(event, yaml.ScalarEvent):
                check_text(event.value, str(path))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            check_depth(depth, str(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a valid config: {' '.join(str(error).split())}") from None
    return read_config(path)


def read_bounded(path: Path) -> str:
    """The text of a config file.

    Raises:
        ValueError: it is too large or not UTF-8.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: refused, a config of {size} bytes; at most {MAX_BYTES} are read")
    return path.read_text(encoding="utf-8")


def check_plain(value: Any, where: str, *, depth: int = 0) -> None:
    """Check nested data for interpolations and its depth.

    Raises:
        ValueError: there is an interpolation, or more than MAX_DEPTH levels.
    """
    check_depth(depth, where)
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, Mapping | list):
        for item in [*value, *value.values()] if isinstance(value, Mapping) else value:
            check_plain(item, where, depth=depth + 1)


def check_integers(values: Mapping[str, Any], where: str) -> None:
    """Check the integers of a config, which determine memory, except seeds.

    Raises:
        ValueError: one is above MAX_INTEGER.
    """
    for key, value in flatten(values):
        if isinstance(value, int) and abs(value) > MAX_INTEGER and not key.endswith("seed"):
            raise ValueError(f"{where}: refused, its config has {key}={value}; at most {MAX_INTEGER} is allowed")


def check_text(text: str, where: str) -> None:
    if "${" in text:
        raise ValueError(f"{where}: refused, it has the interpolation {text[:100]!r}; write its value")


def check_depth(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: refused, more than {MAX_DEPTH} levels of nested values")

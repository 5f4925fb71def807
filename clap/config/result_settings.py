"""The settings that the result of a run depends on, as flat data that runs are compared by."""

from collections.abc import Mapping
from typing import Any

from clap.config import flatten
from clap.config.build import update_node
from clap.config.values import LOCAL_KEYS


def read_result_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a composed config that its result depends on, {dotted key: value}."""
    return {key: v for key, v in flatten(config) if changes_result(key) and not isinstance(v, dict | list)}


def changes_result(key: str) -> bool:
    """Whether a dotted key changes the result of a run."""
    return key not in LOCAL_KEYS and key.split(".")[0] != "study"


def update_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with the present names of classes, and without the log-mel arguments that are now classes."""
    updated = dict(settings)
    for target in [key for key in settings if key.split(".")[-1] == "_target_"]:
        prefix = target.removesuffix("_target_")
        own = [key for key in settings if key.startswith(prefix) and "." not in key.removeprefix(prefix)]
        node = update_node({key.removeprefix(prefix): updated.pop(key) for key in own})
        updated |= {f"{prefix}{name}": value for name, value in node.items()}
    return updated


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value before, value now)} of the settings that differ, those of earlier versions under present names."""
    before, now = update_settings(before), update_settings(now)
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}

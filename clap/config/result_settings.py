"""The settings that the result of a run depends on, as flat data that runs are compared by."""

import logging
from collections.abc import Mapping
from typing import Any

from clap.config import flatten
from clap.config.build import update_node
from clap.config.values import LOCAL_KEYS, OPEN_MAPPINGS, single_key

log = logging.getLogger(__name__)


def read_result_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a composed config that its result depends on, {dotted key: value}.

    An empty list is a value, as is an empty mapping that may have items of any name.
    """
    return {key: value for key, value in flatten(config) if changes_result(key) and is_value(key, value)}


def is_value(key: str, value: Any) -> bool:
    """Whether a value has no items with keys of their own."""
    return not isinstance(value, dict | list) or value == [] or (value == {} and key in OPEN_MAPPINGS)


def changes_result(key: str) -> bool:
    """Whether a dotted key changes the result of a run."""
    return single_key(key) not in LOCAL_KEYS and key.split(".")[0] != "study"


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
    """{key: (value before, value now)} of the settings that differ, those of earlier versions under present names.

    Keys that the earlier version did not have are not compared.
    """
    before, now = update_settings(before), update_settings(now)
    keys = sorted((before.keys() | now.keys()) - set(find_new_keys(before, now)))
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def log_new_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log the keys that `find_changes` does not compare, of a run or sweep that resumes."""
    if added := find_new_keys(update_settings(before), update_settings(now)):
        log.info("not compared, the earlier version had no such keys: %s", ", ".join(added))


def find_new_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in now.keys() - before.keys() if is_new_key(key, before))


def is_new_key(key: str, before: Mapping[str, Any]) -> bool:
    """Whether a key was added to a node of the recorded settings, or is of a group that they do not have.

    Keys of an option that was not chosen, and items of a list, are not new: they are changes.
    """
    node, _, name = key.rpartition(".")
    is_in_known_node = any(known.rpartition(".")[0] == node for known in before)
    is_in_known_group = any(known.split(".")[0] == key.split(".")[0] for known in before)
    return not name.isdigit() and (is_in_known_node or not is_in_known_group)

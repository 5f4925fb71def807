"""Options of config groups that a checkpoint records, so that their keys can be overridden and checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from clap.config.overrides import list_overrides, list_values

OPTION = "recorded"


def read_values(argv: Sequence[str], key: str) -> list[Any]:
    """The values of a key on a command line: one, those of a sweep, or none."""
    try:
        overrides = OverridesParser.create().parse_overrides(list_overrides(argv))
        return [value for override in overrides if override.key_or_group == key for value in list_values(override)]
    except HydraException:
        return []  # the check of the command line reports it


def store_recorded(group: str, recorded: Mapping[str, Mapping[str, Any] | None], argv: Sequence[str]) -> None:
    """Store the option `recorded` of a group, if all checkpoints record the same.

    Args:
        recorded: checkpoint -> its config node of the group, without interpolations; None if it has none.

    Raises:
        ValueError: keys of the option are overridden, but there is none.
    """
    nodes = list(recorded.values())
    if nodes and nodes[0] is not None and all(node == nodes[0] for node in nodes):
        ConfigStore.instance().store(name=OPTION, group=group, node=dict(nodes[0]), package=group)
        return
    lines = list_overrides(argv)
    keys = [line for line in lines if line.startswith(f"{group}.")]
    chooses = (f"{group}=", "experiment=")  # an experiment chooses the options of evaluate.py
    if keys and not any(line.startswith(chooses) for line in lines):
        one = f"checkpoint={next(iter(recorded))} records no {group}" if recorded else "no checkpoint is set"
        reason = one if len(recorded) < 2 else f"the {len(recorded)} checkpoints do not record the same {group}"
        raise ValueError(f"{keys[0]}: {reason}; give {group}=OPTION{'' if recorded else ' or checkpoint=PATH'}")

"""The config that a checkpoint records for its evaluation, read without importing torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from clap import checkpoint
from clap.config import find_conf_dir
from clap.config.recorded_options import read_values, store_recorded
from clap.config.saved import check_integers, read_saved_yaml
from clap.dataset.dataset_settings import DatasetSettings
from clap.published.sources import is_published


def read_recorded(source: str) -> dict[str, Any]:
    """The dataset and evaluation that a checkpoint was trained with; empty for published weights.

    Raises:
        FileNotFoundError: there is no such checkpoint folder, and the name is not of published weights.
        ValueError: its config is refused, see `clap.config.saved`.
    """
    try:
        recorded = read_saved_yaml(checkpoint.find_file(checkpoint.find_best(Path(source)), checkpoint.CONFIG))
    except FileNotFoundError:
        if not is_published(source):
            raise
        recorded = {}
    kept = {group: recorded[group] for group in ("dataset", "evaluation") if recorded.get(group) is not None}
    check_integers(kept, str(source))
    return kept


def store_recorded_options(argv: Sequence[str]) -> None:
    """Let the command line of evaluate.py override keys of the dataset and the evaluators that a checkpoint records.

    Checkpoints of a sweep that record different ones are each evaluated with their own, without overridden keys.
    """
    recorded = {str(source): read_recorded(str(source)) for source in read_values(argv, "checkpoint") if source}
    for found in recorded.values():
        if "evaluation" in found:
            found["evaluation"] = {name: add_options(name, node) for name, node in found["evaluation"].items()}
    defaults = {"dataset": asdict(DatasetSettings()), "evaluation": {}}  # of keys that earlier versions do not have
    for group, keys in defaults.items():
        nodes = {name: keys | found[group] if group in found else None for name, found in recorded.items()}
        store_recorded(group, nodes, argv)


def add_options(name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an evaluator, with the options of its yaml in conf/evaluation that earlier versions do not have."""
    path = find_conf_dir() / "evaluation" / f"{name}.yaml"
    known = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return (known if known.get("_target_") == node.get("_target_") else {}) | dict(node)

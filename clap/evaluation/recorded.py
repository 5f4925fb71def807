"""The config that a checkpoint records for its evaluation, read without importing torch."""

from pathlib import Path
from typing import Any

from clap import checkpoint
from clap.config.saved import read_saved_yaml
from clap.published.hub import is_published


def read_recorded(source: str) -> dict[str, Any]:
    """The dataset and evaluation that a checkpoint was trained with; empty for published weights.

    Raises:
        FileNotFoundError: there is no such checkpoint folder, and the name is not of published weights.
    """
    try:
        recorded = read_saved_yaml(checkpoint.find_file(checkpoint.find_best(Path(source)), checkpoint.CONFIG))
    except FileNotFoundError:
        if not is_published(source):
            raise
        recorded = {}
    return {group: recorded[group] for group in ("dataset", "evaluation") if recorded.get(group) is not None}

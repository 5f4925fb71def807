"""The config that a checkpoint records for its evaluation, read without importing torch."""

from pathlib import Path
from typing import Any

from clap import checkpoint
from clap.config.saved import check_integers, read_saved_yaml
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

"""The description of a run in MLflow, in Markdown: what it is, its results, its command and its folder."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from clap.text_table import EMPTY, to_markdown

NOTE = "mlflow.note.content"  # the tags that MLflow's UI shows as a description, and as the color of a run
COLOR = "mlflow.runColor"
MAX_LENGTH = 4800  # characters; the tracker cuts longer tags at MAX_TAG_LENGTH


def describe(what: str, *, command: Sequence[str], folder: Path, result: str = "", remark: str = "") -> str:
    """A description, of which the UI shows the first lines; `result` loses rows of its table if it is too long."""
    rest = [remark, f"    {shlex.join(command)}", f"Folder: `{folder}`"]
    room = MAX_LENGTH - len(what) - sum(map(len, rest))
    return "\n\n".join(filter(None, (what, shorten_table(result, room), *rest)))


def describe_error(note: str, error: str) -> str:
    """A description with the error of a failed run."""
    return f"{note}\n\n**Error**: {error}".strip()


def format_metrics(metrics: Mapping[str, float], chance: Mapping[str, float]) -> str:
    """A Markdown table of metrics, those of the test split if there are any, with their chance levels."""
    names = [name for name in metrics if name.startswith("test/")] or list(metrics)
    rows = [[name, *(f"{own[name]:.4f}" if name in own else EMPTY for own in (metrics, chance))] for name in names]
    return to_markdown([["metric", "value", "chance"], *rows]) if rows else ""


def shorten_table(table: str, length: int) -> str:
    """The first lines of a table that fit into `length` characters, with the number of those that do not."""
    if len(table) <= length:
        return table
    lines, kept = table.splitlines(), []
    while lines and sum(map(len, kept)) + len(kept) + len(lines[0]) + 60 < length:
        kept.append(lines.pop(0))
    return "\n".join([*kept, "", f"{len(lines)} more rows are in the artifacts of the run."])

"""The description of a run in MLflow, in Markdown: what it is, its results, its command and its folder."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from clap.text_table import EMPTY, to_markdown

NOTE = "mlflow.note.content"  # the tags that MLflow's UI shows as a description, and as the color of a run
COLOR = "mlflow.runColor"
MAX_LENGTH = 4800  # characters; the tracker cuts longer tags at MAX_TAG_LENGTH


def describe(what: str, *, command: Sequence[str], folder: Path, result: str = "", remark: str = "") -> str:
    """A description, of which the UI shows the first lines; `result` loses rows of its tables if it is too long."""
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


def shorten_table(text: str, length: int) -> str:
    """A text of at most `length` characters, whose last table loses its last rows first, and their number.

    Chance levels and what is written around the tables remain.
    """
    lines, cut, room = text.splitlines(), 0, length - 60
    if len(text) <= length:
        return text
    size = sum(map(len, lines)) + len(lines)
    for place in range(len(lines) - 1, 1, -1):
        is_row = lines[place].startswith("|") and lines[place - 1].startswith("|") and lines[place - 2].startswith("|")
        if size > room and is_row and not lines[place].startswith("| chance"):
            size -= len(lines.pop(place)) + 1
            cut += 1
    return "\n".join([*lines, "", f"{cut} more rows are in the artifacts of the run."])[: max(length, 0)]

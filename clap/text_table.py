"""Tables as Markdown and CSV, and the texts of their cells."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

EMPTY = "–"  # of a cell without a value
WIDEST = 40  # characters to which a column is padded; longer texts overflow it


def to_markdown(lines: Sequence[Sequence[str]], num_text_columns: int | None = None) -> str:
    """A Markdown table, the header first; columns after the first `num_text_columns`, if given, are right-aligned."""
    table = [[" ".join(word.replace("|", r"\|").splitlines()) for word in line] for line in lines]
    widths = [max(3, min(WIDEST, max(map(len, column)))) for column in zip(*table, strict=True)]
    left = len(widths) if num_text_columns is None else num_text_columns
    rule = ["-" * width if place < left else f"{'-' * (width - 1)}:" for place, width in enumerate(widths)]
    table = [
        [word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in [table[0], rule, *table[1:]]
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def to_csv(lines: Iterable[Sequence[object]]) -> str:
    """Lines as CSV, the header first; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def tabulate(records: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> list[list[object]]:
    """Records as lines, the header first: one column for each key of any record, or those of `columns`."""
    columns = list(columns or dict.fromkeys(key for record in records for key in record))
    return [columns, *([record.get(key) for key in columns] for record in records)]


def format_number(value: float | None, sign: str = "") -> str:
    """Three decimals, one for numbers from 100 on; never a negative zero."""
    if value is None:
        return EMPTY
    decimals = 3 if abs(value) < 100 else 1
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def format_minutes(seconds: float | None) -> str:
    """`1.5` for 90 seconds."""
    return EMPTY if seconds is None else f"{seconds / 60:.1f}"


def shorten(text: str, width: int) -> str:
    """Text of at most `width` characters, with a mark where it is cut."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"

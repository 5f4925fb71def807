"""Results of the commands: a table, JSON, JSON lines or npz, on stdout or in a file that is written atomically."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clap.atomic import write_atomic

FORMATS = ("table", "json", "jsonl", "npz")
SUFFIXES = {".txt": "table", ".json": "json", ".jsonl": "jsonl", ".npz": "npz"}
ESCAPED_SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # str.splitlines splits there
TOP = 5  # rows per file in a table


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write or overwrite (default: stdout)")
    parser.add_argument("--format", choices=FORMATS, help="default: from the suffix of --output, else table")
    parser.add_argument(
        "--top", type=int, metavar="N", help=f"number of best {what} per file (default: {TOP} in a table, all in JSON)"
    )


def choose_format(output: Path | None, chosen: str | None) -> str:
    """The format from --format, else from the suffix, else a table; reject a path that cannot be written.

    Raises:
        ValueError: the suffix is not that of a format, or npz is given without a file.
        OSError: the path is a folder, or its folder does not exist or is not writable.
    """
    if output is not None:
        check_writable(output)
        if chosen is None and output.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"--output {output}: the suffix is not one of {', '.join(SUFFIXES)}; rename it, or set --format"
            )
    if chosen == "npz" and output is None:
        raise ValueError("--format npz is not written to stdout; add --output FILE")
    return chosen or ("table" if output is None else SUFFIXES[output.suffix.lower()])


def check_writable(output: Path) -> None:
    """Reject a path to which no file can be written.

    Raises:
        OSError: it is a folder, or its folder does not exist or is not writable.
    """
    if output.is_dir():
        raise IsADirectoryError(f"--output {output} is a folder; give the path of a file")
    if not os.access(output.parent, os.W_OK):
        raise FileNotFoundError(
            f"--output {output}: {output.parent} is not a writable folder; create it or give another"
        )


def check_output_arguments(args: argparse.Namespace) -> None:
    """Reject wrong output arguments before anything is computed."""
    choose_format(args.output, args.format)
    if args.top is not None and args.top < 1:
        raise ValueError(f"--top {args.top} is too small; give 1 or more")


def write_ranking(args: argparse.Namespace, files: Sequence[str], texts: Sequence[str], **arrays: Any) -> None:
    """Write the texts of each file, best first; npz stores all `arrays`, of which the first is (files, texts)."""
    name, values = next(iter(arrays.items()))
    form = choose_format(args.output, args.format)
    top = args.top or (TOP if form == "table" else len(texts))
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    ranking = [{texts[i]: float(row[i]) for i in best} for row, best in zip(values, order, strict=True)]
    if form == "npz":
        content = to_npz({"files": np.array(files), **arrays})
    elif form == "table":
        content = to_table(files, ranking, name)
    else:
        content = to_json([{"file": file, name: best} for file, best in zip(files, ranking, strict=True)], form)
    write_content(args.output, content, f"{name} of {len(files)} files, {len(texts)} texts")


def write_content(output: Path | None, content: bytes, summary: str) -> None:
    """Write to stdout, or to a file and print its summary."""
    if output is None:
        sys.stdout.buffer.write(content)  # UTF-8 in any locale, so that no character fails to print
        sys.stdout.buffer.flush()
    else:
        write_atomic(output, content)
        print(f"{output}: {summary}")


def to_table(files: Sequence[str], ranking: Sequence[Mapping[str, float]], name: str) -> bytes:
    """Columns file, text and value; the file name is printed in its first row only."""
    rows = [("file", "text", name)]
    for file, best in zip(files, ranking, strict=True):
        rows += [("" if i else file, text, f"{value:.3f}") for i, (text, value) in enumerate(best.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{file:<{widths[0]}}  {text:<{widths[1]}}  {value:>{len(name)}}" for file, text, value in rows]
    return encode_utf8("\n".join(lines) + "\n")


def to_json(entries: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """A JSON list, or one JSON object per line; other line separators of Unicode are escaped."""
    lines = [json.dumps(entry, ensure_ascii=False).translate(ESCAPED_SEPARATORS) for entry in entries]
    return encode_utf8("\n".join(lines) + "\n" if form == "jsonl" else "[\n" + ",\n".join(lines) + "\n]\n")


def to_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def format_time(seconds: float) -> str:
    """`1:02:03.5`, or `02:03.5` within the first hour."""
    tenths = round(seconds * 10)
    hours, minutes = divmod(tenths // 600, 60)
    return f"{f'{hours}:' if hours else ''}{minutes:02}:{tenths % 600 / 10:04.1f}"


def encode_utf8(text: str) -> bytes:
    """UTF-8; undecodable bytes of file names become escapes, as in JSON."""
    return text.encode("utf-8", errors="backslashreplace")

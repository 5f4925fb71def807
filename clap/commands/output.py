"""What the verbs give: a table, JSON, JSON lines or npz, on the screen or in a file that is whole or not there."""

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
TOP = 5  # rows a file of a table


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there, replacing it, and not on the screen")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --output, else a table")
    parser.add_argument(
        "--top", type=int, metavar="N", help=f"best {what} of each file (default: {TOP} in a table, all in JSON)"
    )


def choose_format(output: Path | None, chosen: str | None) -> str:
    """The format of --format, of the suffix, or a table; refuse a place where no file can be written.

    Raises:
        ValueError: the suffix names no format, or npz has no file to go to. OSError: there is no such folder.
    """
    if output is not None:
        if output.is_dir():
            raise IsADirectoryError(f"--output {output} is a folder; give a file in it")
        if not os.access(output.parent, os.W_OK):
            raise FileNotFoundError(f"--output {output}: {output.parent} is not a folder that can be written to")
        if chosen is None and output.suffix not in SUFFIXES:
            raise ValueError(f"--output {output}: {', '.join(SUFFIXES)} tell the format; rename it, or set --format")
    if chosen == "npz" and output is None:
        raise ValueError("--format npz needs --output FILE")
    return chosen or ("table" if output is None else SUFFIXES[output.suffix])


def check_output_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot be written, before anything is computed."""
    choose_format(args.output, args.format)
    if args.top is not None and args.top < 1:
        raise ValueError(f"--top {args.top} is not 1 or more")


def write_ranking(args: argparse.Namespace, files: Sequence[str], texts: Sequence[str], **arrays: Any) -> None:
    """Each file's texts, best first, in table and JSON; in npz all `arrays`, the first of which is (files, texts)."""
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
    if args.output is None:
        sys.stdout.buffer.write(content)  # UTF-8 whatever the terminal: nothing computed is lost to a letter
        sys.stdout.buffer.flush()
    else:
        write_atomic(args.output, content)
        print(f"{args.output}: {name} of {len(files)} files, {len(texts)} texts")


def to_table(files: Sequence[str], ranking: Sequence[Mapping[str, float]], name: str) -> bytes:
    """Columns file, text, value; the file's name stands on its first row only."""
    rows = [("file", "text", name)]
    for file, best in zip(files, ranking, strict=True):
        rows += [("" if i else file, text, f"{value:.3f}") for i, (text, value) in enumerate(best.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{file:<{widths[0]}}  {text:<{widths[1]}}  {value:>{len(name)}}" for file, text, value in rows]
    return encode_utf8("\n".join(lines) + "\n")


def to_json(entries: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """One list, or one object a line."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    return encode_utf8("\n".join(lines) + "\n" if form == "jsonl" else "[\n" + ",\n".join(lines) + "\n]\n")


def to_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def encode_utf8(text: str) -> bytes:
    """UTF-8; bytes of a file name that are none become escapes, as JSON has them."""
    return text.encode("utf-8", errors="backslashreplace")

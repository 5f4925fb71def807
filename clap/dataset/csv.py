"""Own data: a folder of recordings and a CSV or JSONL that says what is heard in them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.index import check_name_length, shorten_repr

Row = tuple[str, dict]  # "FILE, line N" for errors, columns
LINE_END = re.compile(r"\r\n|\r|\n")
CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0e-\x1f\x7f]")  # control characters, which binary files are full of
INVALID_CHARACTERS = re.compile(r"[\0\ud800-\udfff]")  # what JSON can escape and no file system or tokenizer takes
MAX_FIELD_LENGTH = 20_000  # characters


@dataclass
class IndexEntry:
    """What the rows of one path say together; `where` is the first of them, for errors."""

    split: str
    captions: list[str]
    label: str | None
    where: str


class CSV(Corpus):
    """Clips from an index with the columns path, caption (repeated rows, or caption_1 ... caption_n), split, label.

    Captions or a label are needed, split and label are optional, and so are all but one of caption_1 ... caption_n.
    Without a split column clips are divided by a hash of their path, so that adding one moves no other.

    Args:
        root: folder that the paths are relative to.
        metadata: one CSV or JSONL; or one for each split, {train: FILE, val: FILE, test: FILE}, which a split column
            does not change. In a JSONL, `caption` may be a list.
        val_fraction, test_fraction: shares of the clips where the index has no split column.
        max_duration: seconds; in training only this much of a longer clip is read.

    Raises:
        FileNotFoundError: root or an index is missing. ValueError: a row is wrong; it names file and line.
    """

    name = "csv"

    def __init__(
        self,
        root: str | Path,
        metadata: str | Path | Mapping[str, str],
        *,
        name: str = "csv",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_duration: float = 30.0,
    ) -> None:
        self.root, self.name, self.max_duration = Path(root), name, max_duration
        self.fractions = check_fractions(val=val_fraction, test=test_fraction)
        if not self.root.is_dir():
            raise FileNotFoundError(f"dataset.root={root} is not a folder; give the one that the paths are relative to")
        self.entries: dict[str, IndexEntry] = {}
        files = metadata if isinstance(metadata, Mapping) else {None: metadata}
        for split, path in files.items():
            self.read_index(Path(path), split)

    def clips(self, split: str) -> list[Clip]:
        return [
            Clip(name, tuple(dict.fromkeys(entry.captions)), self.root / name, entry.label)
            for name, entry in self.entries.items()
            if entry.split == split
        ]

    def read_index(self, path: Path, file_split: str | None) -> None:
        """Take in one file; rows of one path become one clip with several captions."""
        if file_split is not None and file_split not in SPLITS:
            raise ValueError(f"dataset.metadata: {file_split!r} is not one of {', '.join(SPLITS)}")
        rows = read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path, ("path",))
        has_split = file_split is None and any("split" in row for _, row in rows)
        for where, row in rows:
            name = self.resolve_name(read_text(row, "path", where), where)
            split = file_split or (read_split(row, where) if has_split else assign_split(name, self.fractions))
            label = read_text(row, "label", where)
            self.merge_row(name, IndexEntry(split, read_captions(row, label, where), label, where))

    def merge_row(self, name: str, entry: IndexEntry) -> None:
        """Join a row with earlier ones of the same path, which must agree with it."""
        known = self.entries.setdefault(name, entry)
        if known is entry:
            return
        for column in ("split", "label"):
            here, there = getattr(entry, column), getattr(known, column)
            if here != there:
                raise ValueError(f"{entry.where}: {name} has {column} {here}, but {there} in {known.where}; choose one")
        known.captions += entry.captions

    def resolve_name(self, name: str | None, where: str) -> str:
        """A path relative to the root, in one spelling; absolute ones may lead into the root."""
        if name is None:
            raise ValueError(f"{where}: path is empty")
        check_name_length(name, "path", where)
        path, root = Path(os.path.abspath(self.root / name)), Path(os.path.abspath(self.root))
        if path == root or not path.is_relative_to(root):
            raise ValueError(
                f"{where}: {shorten_repr(name)} is outside dataset.root={self.root}; set it to a folder that holds all"
            )
        return path.relative_to(root).as_posix()


def check_fractions(**fractions: float) -> dict[str, float]:
    """{split: share of the clips}, of which some must remain for training.

    Raises:
        ValueError: a share is negative, or the sum is 1 or more.
    """
    if not (min(fractions.values()) >= 0 and sum(fractions.values()) < 1):
        given = " and ".join(f"dataset.{split}_fraction={fraction}" for split, fraction in fractions.items())
        together = ", and together" if len(fractions) > 1 else " and"
        raise ValueError(f"{given} must be 0 or more{together} below 1; the remaining clips are the training split")
    return fractions


def assign_split(name: str, fractions: Mapping[str, float]) -> str:
    """The split of a name by its hash: each of `fractions` gets its share of all names, train the rest."""
    draw = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
    for split, fraction in fractions.items():
        if draw < fraction:
            return split
        draw -= fraction
    return "train"


def read_split(row: Mapping, where: str) -> str:
    split = read_text(row, "split", where)
    if split not in SPLITS:
        raise ValueError(f"{where}: split={shorten_repr(split or '')} is not one of {', '.join(SPLITS)}")
    return split


def read_captions(row: Mapping, label: str | None, where: str) -> list[str]:
    """Captions of one row, from caption or caption_1 ... caption_n; made from the label where there is no such column.

    Of several captions some may be blank: corpora with "up to five" of them leave cells empty.
    """
    columns = [name for name in row if name == "caption" or re.fullmatch(r"caption_\d+", name)]
    if not columns and label:
        return [f"the sound of {label}"]
    if not columns:
        wanted = "label is empty" if "label" in row else "no column caption, caption_1 ... caption_n or label"
        raise ValueError(f"{where}: {wanted}; the columns are {', '.join(row)}")
    captions = []
    for column in columns:
        values = row[column] if isinstance(row[column], list) else [row[column]]
        captions += [read_text({column: value}, column, where) for value in values]
    captions = [caption for caption in captions if caption is not None]
    if not captions:
        raise ValueError(f"{where}: the caption is empty; write one, or leave the row out")
    return captions


def read_text(row: Mapping, column: str, where: str) -> str | None:
    """The text in a column, stripped; None where it is blank or the column is missing."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {column}={shorten_repr(value)} is no text; put it in quotes")
    return check_characters((value or "").strip(), column, where) or None


def check_characters(text: str, column: str, where: str) -> str:
    """Refuse what is no text though it is called so."""
    if found := INVALID_CHARACTERS.search(text):
        raise ValueError(f"{where}: {column}={shorten_repr(text)} holds {found[0]!r}, which is no character")
    if len(text) > MAX_FIELD_LENGTH:
        raise ValueError(f"{where}: {column} has {len(text)} characters, more than {MAX_FIELD_LENGTH}")
    return text


def read_csv(path: Path, columns: Sequence[str] = (), *, encoding: str = "utf-8-sig") -> list[Row]:
    """Rows of a CSV with a header line that names at least `columns`, each with the line in which it begins."""
    reader = csv.reader(io.StringIO(read_index_file(path, encoding), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    following = 1
    try:
        for fields in reader:
            where, following = f"{path}, line {following}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = check_column_names(path, [name.strip() for name in fields])
            elif len(fields) != len(header):
                raise ValueError(
                    f"{where}: {len(fields)} fields, but the header names {len(header)} "
                    f"({', '.join(header)}); quote a caption that holds a comma"
                )
            else:
                check_field_lengths(fields, where)
                rows.append((where, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {following}: not CSV ({error}); look for a lone quote") from None
    check_not_empty(path, rows)
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path}: column {missing[0]} is missing; the columns are {', '.join(header)}")
    return rows


def check_field_lengths(fields: Sequence[str], where: str) -> None:
    longest = max(map(len, fields))
    if longest > MAX_FIELD_LENGTH:
        raise ValueError(
            f"{where}: a field has {longest} characters, more than {MAX_FIELD_LENGTH}; look for a lone quote"
        )


def check_column_names(path: Path, header: list[str]) -> list[str]:
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        raise ValueError(
            f"{path}, line 1: its columns are parted by {found[0]!r}; save it with commas, as spreadsheets do under "
            "another name (CSV UTF-8, comma delimited)"
        )
    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(
            f"{path}, line 1: column {twice[0]!r} is there twice; name several captions caption_1, caption_2"
        )
    return header


def read_jsonl(path: Path) -> list[Row]:
    """Objects of a JSON-lines file, each with its line number."""
    rows = []
    for line, text in enumerate(LINE_END.split(read_index_file(path)), start=1):
        if not text.strip():
            continue
        row = parse_json(text, path, line)
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: not a JSON object")
        rows.append((f"{path}, line {line}", row))
    check_not_empty(path, rows)
    return rows


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none; the message names file and line.
    """
    line = first_line
    try:
        return json.loads(text, parse_int=parse_int)
    except json.JSONDecodeError as error:
        end = error.pos  # what lacks a comma behind it may stand in an earlier line
        before = text[:end].rstrip() if "delimiter" in error.msg else text[:end]
        line, reason = first_line + before.count("\n"), error.msg
    except RecursionError:
        reason = "brackets in brackets without end"
    raise ValueError(f"{path}, line {line}: not JSON ({reason})")


def parse_int(digits: str) -> int | float:
    """Python refuses to read thousands of digits."""
    return int(digits) if len(digits) < 20 else float(digits)


def read_index_file(path: Path, encoding: str = "utf-8-sig") -> str:
    """Text of an index; a byte order mark, as spreadsheets write it, is dropped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; set dataset.metadata to a CSV or JSONL")
    data = path.read_bytes()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save the file in that encoding") from None
    if found := CONTROL_CHARACTERS.search(text):
        line = len(LINE_END.findall(text[: found.start()])) + 1
        raise ValueError(f"{path}, line {line}: {found[0]!r} is no text; mend the line or save the file anew")
    return text.replace("\ufeff", "")  # files put together have some inside


def check_not_empty(path: Path, rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError(f"{path} has no rows")

"""Own data: a folder of recordings and a CSV or JSON Lines file with their captions or labels."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.index import check_name_length, find_file, shorten_repr
from clap.dataset.keywords import fill_keyword_templates

log = logging.getLogger(__name__)

Row = tuple[str, dict]  # "FILE, line N" for errors, columns
LINE_END = re.compile(r"\r\n|\r|\n")
CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0e-\x1f\x7f]")  # frequent in binary files
INVALID_CHARACTERS = re.compile(r"[\0\ud800-\udfff]")  # JSON can escape them, file systems and tokenizers reject them
JSONL_SUFFIXES = (".jsonl", ".ndjson")
OTHER_SUFFIXES = (".json", ".ods", ".parquet", ".xls", ".xlsx")
MAX_FIELD_LENGTH = 20_000  # characters


@dataclass
class IndexEntry:
    """The merged rows of one path; `where` is the first row, for errors."""

    split: str
    captions: list[str]
    labels: tuple[str, ...]
    recording: str | None
    where: str
    path: Path
    from_labels: bool


class CSV(Corpus):
    """Clips from an index with the columns path, caption (repeated rows, or caption_1 ... caption_n), split, label.

    Every clip requires a caption or a label; of caption_1 ... caption_n all but one may be blank. label_1 ... label_n
    give a clip several labels, recording names what it is cut from. Without a column split a hash of the path assigns
    the split, so adding a clip moves no other. Columns that no row fills, and rows without text, are ignored.

    A recording is also found if its name differs from the path in spaces at the ends or in Unicode normal form, and if
    the path is written with \\. The id of a clip is its path as written, without spaces at the ends and with /.

    Args:
        root: folder that the paths in the index are relative to, with recordings in any subfolders.
        metadata: one CSV or JSONL; or one for each split, {train: FILE, val: FILE, test: FILE}, which ignores a split
            column. In a JSONL, `caption` and `label` may be lists.
        name: the corpus in metric names.
        val_fraction, test_fraction: shares of the clips where the index has no split column.
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root or an index is missing.
        ValueError: a row or a fraction is invalid; the message names file and line, or the key.
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
            raise FileNotFoundError(f"root={root} is not a folder; set dataset.root to that of the recordings")
        self.entries: dict[str, IndexEntry] = {}
        files = metadata if isinstance(metadata, Mapping) else {None: metadata}
        for split, path in files.items():
            self.read_index(Path(path), split)

    def clips(self, split: str) -> list[Clip]:
        return [
            Clip(
                name,
                tuple(dict.fromkeys(entry.captions)),
                entry.path,
                source=entry.recording,
                captions_from_labels=entry.from_labels,
                **label_clip(entry.labels),
            )
            for name, entry in self.entries.items()
            if entry.split == split
        ]

    def read_index(self, path: Path, file_split: str | None) -> None:
        """Add the clips of one file; rows of one path become one clip with several captions."""
        if file_split is not None and file_split not in SPLITS:
            raise ValueError(f"dataset.metadata: {file_split!r} is not one of {', '.join(SPLITS)}; rename the key")
        if path.suffix.lower() in OTHER_SUFFIXES:
            raise ValueError(f"metadata={path} is not CSV or JSONL; export it as CSV UTF-8 (comma delimited)")
        rows = read_jsonl(path) if path.suffix.lower() in JSONL_SUFFIXES else read_csv(path, ("path",))
        rows = drop_empty_columns(path, rows)
        has_split = file_split is None and any("split" in row for _, row in rows)
        for where, row in rows:
            name = self.resolve_name(read_text(row, "path", where), where)
            split = file_split or (read_split(row, where) if has_split else assign_split(name, self.fractions))
            labels, path = read_labels(row, where), self.find_recording(row, name)
            captions, from_labels = read_captions(row, labels, where), not find_columns(row, "caption")
            entry = IndexEntry(split, captions, labels, read_text(row, "recording", where), where, path, from_labels)
            self.merge_row(name, entry)

    def merge_row(self, name: str, entry: IndexEntry) -> None:
        """Append the captions of a row to those of earlier rows of the path; split, label, recording must be equal."""
        known = self.entries.setdefault(name, entry)
        if known is entry:
            return
        if entry.path != known.path:
            raise ValueError(
                f"{entry.where}: {str(entry.path)!r} and {str(known.path)!r} in {known.where} differ only in "
                "spaces at the ends; rename one"
            )
        labels = (", ".join(row.labels) or None for row in (entry, known))
        others = ("split", entry.split, known.split), ("recording", entry.recording, known.recording)
        for column, new, old in (*others, ("label", *labels)):
            if new != old:
                raise ValueError(f"{entry.where}: {name} has {column} {new}, but {old} in {known.where}; choose one")
        known.captions += entry.captions
        known.from_labels &= entry.from_labels

    def resolve_name(self, name: str | None, where: str) -> str:
        """The normalized path relative to root, with forward slashes; absolute paths must be inside root."""
        if name is None:
            raise ValueError(f"{where}: path is empty; write the path of a recording, or delete the row")
        check_name_length(name, "path", where)
        if "\\" in name and not (self.root / name).exists():  # written on Windows
            name = name.replace("\\", "/")
        path, root = Path(os.path.abspath(self.root / name)), Path(os.path.abspath(self.root))
        if Path(name).is_absolute() and not path.is_relative_to(root):  # root or the path is spelled with a link
            path, root = Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(root))
        if path == root or not path.is_relative_to(root):
            raise ValueError(
                f"{where}: path={shorten_repr(name)} is outside root={self.root}; "
                "set dataset.root to a folder that contains all recordings"
            )
        return path.relative_to(root).as_posix()

    def find_recording(self, row: Mapping, name: str) -> Path:
        """The path of the recording of a row; spaces at the ends of the field count if such a file exists."""
        exact = self.root / row["path"]
        return exact if row["path"] != row["path"].strip() and exact.is_file() else find_file(self.root, name)


def drop_empty_columns(path: Path, rows: Sequence[Row]) -> Sequence[Row]:
    """The rows without a column split that no row fills, and without such caption columns if there are labels."""
    columns = set().union(*(row for _, row in rows))
    filled = {name for name in columns if any(is_filled(row.get(name)) for _, row in rows)}
    captions, has_labels = set(find_columns(columns, "caption")), bool(find_columns(filled, "label"))
    empty = ({"split"} & columns) - filled | (captions if has_labels and not captions & filled else set())
    if not empty:
        return rows
    log.warning("%s: no row has a text in %s, which is ignored", path, ", ".join(sorted(empty)))
    return [(where, {name: value for name, value in row.items() if name not in empty}) for where, row in rows]


def is_filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [])


def check_fractions(**fractions: float) -> dict[str, float]:
    """Return {split: share of the clips}; the remaining clips are for training.

    Raises:
        ValueError: a share is negative, or the sum is 1 or more.
    """
    if not (min(fractions.values()) >= 0 and sum(fractions.values()) < 1):
        given = " and ".join(f"{split}_fraction={fraction}" for split, fraction in fractions.items())
        together = ", and together" if len(fractions) > 1 else " and"
        raise ValueError(
            f"{given} must be 0 or more{together} below 1; the remaining clips are the training split; "
            f"set dataset.{next(iter(fractions))}_fraction"
        )
    return fractions


def assign_split(name: str, fractions: Mapping[str, float]) -> str:
    """The split of a name by its hash: each split in `fractions` gets that share of all names, train the rest."""
    position = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
    for split, fraction in fractions.items():
        if position < fraction:
            return split
        position -= fraction
    return "train"


def read_split(row: Mapping, where: str) -> str:
    """The split column; ValueError if it is not one of SPLITS."""
    split = read_text(row, "split", where)
    if split not in SPLITS:
        raise ValueError(f"{where}: split={shorten_repr(split or '')} is not one of {', '.join(SPLITS)}")
    return split


def read_labels(row: Mapping, where: str) -> tuple[str, ...]:
    """The labels of one row, from label or label_1 ... label_n, without blank ones."""
    return tuple(dict.fromkeys(read_texts(row, find_columns(row, "label"), where)))


def label_clip(labels: tuple[str, ...]) -> dict[str, Any]:
    """The labels as arguments of `Clip`."""
    return {"label": labels[0]} if len(labels) == 1 else {"labels": labels, "keywords": labels}


def read_captions(row: Mapping, labels: Sequence[str], where: str) -> list[str]:
    """The captions of one row, from caption or caption_1 ... caption_n; without these columns, one from its labels.

    Blank captions are skipped if the row has another: corpora with "up to five" captions leave cells empty.

    Raises:
        ValueError: the row has neither a caption nor a label.
    """
    columns = find_columns(row, "caption")
    if not columns and labels:
        return list(fill_keyword_templates(labels))
    if not columns:
        problem = "label is empty" if "label" in row else "no column caption, caption_1 ... caption_n or label"
        raise ValueError(f"{where}: {problem}; the columns are {', '.join(row)}")
    captions = read_texts(row, columns, where)
    if not captions:
        raise ValueError(f"{where}: the caption is empty; write one, or delete the row")
    return captions


def read_texts(row: Mapping, columns: Sequence[str], where: str) -> list[str]:
    """The texts in columns that may hold lists, without blank ones."""
    found = [(name, value) for name in columns for value in (row[name] if isinstance(row[name], list) else [row[name]])]
    texts = [read_text({name: value}, name, where) for name, value in found]
    return [text for text in texts if text is not None]


def find_columns(row: Iterable[str], name: str) -> list[str]:
    """The columns NAME and NAME_1 ... NAME_n of a row; without caption columns its caption is made from its labels."""
    return [column for column in row if re.fullmatch(rf"{name}(_\d+)?", column)]


def read_text(row: Mapping, column: str, where: str) -> str | None:
    """The stripped string in a column; None if it is blank or the column is missing. ValueError for other types."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {column}={shorten_repr(value)} is not a string; put it in quotes")
    return check_characters((value or "").strip(), column, where) or None


def check_characters(text: str, column: str, where: str) -> str:
    """Return the text; ValueError if it is too long or contains NUL or a lone surrogate."""
    if found := INVALID_CHARACTERS.search(text):
        raise ValueError(f"{where}: {column}={shorten_repr(text)} contains {found[0]!r}, which is not text; delete it")
    if len(text) > MAX_FIELD_LENGTH:
        raise ValueError(f"{where}: {column} has {len(text)} characters, more than {MAX_FIELD_LENGTH}; shorten it")
    return text


def read_csv(path: Path, columns: Sequence[str] = (), *, encoding: str = "utf-8-sig") -> list[Row]:
    """The rows below the header line, each with the line that it starts on.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not CSV, has no rows, or lacks one of `columns`.
    """
    reader = csv.reader(io.StringIO(read_index_file(path, encoding), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    next_line = 1
    try:
        for fields in reader:
            where, next_line = f"{path}, line {next_line}", reader.line_num + 1
            if not any(map(str.strip, fields)):
                continue
            if header is None:
                header = check_column_names(path, [name.strip() for name in fields])
                continue
            if any(map(str.strip, fields[len(header) :])) or len(fields) < len(header):
                raise ValueError(
                    f"{where}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); quote captions that contain a comma"
                )
            check_field_lengths(fields, where)
            row = dict(zip(header, fields, strict=False))  # fields without a name are blank
            row.pop("", None)
            rows.append((where, row))
    except csv.Error as error:
        raise ValueError(f"{path}, line {next_line}: not CSV ({error}); check for an unclosed quote") from None
    check_not_empty(path, rows)
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path}: column {missing[0]} is missing; the columns are {', '.join(header)}")
    return rows


def check_field_lengths(fields: Sequence[str], where: str) -> None:
    longest = max(map(len, fields))
    if longest > MAX_FIELD_LENGTH:
        raise ValueError(
            f"{where}: a field has {longest} characters, more than {MAX_FIELD_LENGTH}; check for an unclosed quote"
        )


def check_column_names(path: Path, header: list[str]) -> list[str]:
    """The header without nameless columns at its end; ValueError for another delimiter than a comma, or repeated names.

    Spreadsheets end every line with as many commas as the longest has; the index of a data frame has no name.
    """
    while not header[-1]:
        header = header[:-1]
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        raise ValueError(
            f"{path}, line 1: the delimiter is {found[0]!r}; save the file with commas, in spreadsheets as "
            "CSV UTF-8 (comma delimited)"
        )
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(
            f"{path}, line 1: column {repeated[0]!r} is repeated; name several captions caption_1, caption_2"
        )
    return header


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a JSON Lines file, each with its line.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is not a JSON object, or the file has none.
    """
    rows = []
    for line, text in enumerate(LINE_END.split(read_index_file(path)), start=1):
        if not text.strip():
            continue
        row = parse_json(text, path, line)
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {line}: not a JSON object; write {{"path": ..., "caption": ...}}')
        rows.append((f"{path}, line {line}", row))
    check_not_empty(path, rows)
    return rows


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """The value of a JSON text that starts on `first_line` of a file.

    Raises:
        ValueError: it is not JSON; the message names file and line.
    """
    line = first_line
    try:
        return json.loads(text, parse_int=parse_int)
    except json.JSONDecodeError as error:
        end = error.pos  # a missing comma belongs at the end of the last line with text
        before = text[:end].rstrip() if "delimiter" in error.msg else text[:end]
        line, reason = first_line + before.count("\n"), error.msg
    except RecursionError:
        reason = "nested too deeply"
    raise ValueError(f"{path}, line {line}: not JSON ({reason}); correct the line")


def parse_int(digits: str) -> int | float:
    """Python limits the digits of an int to 4300 and raises an error without a line number."""
    return int(digits) if len(digits) < 20 else float(digits)


def read_index_file(path: Path, encoding: str = "utf-8-sig") -> str:
    """The text of an index without byte order marks, which spreadsheets write.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it cannot be decoded or contains control characters; the message names file and line.
    """
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
        raise ValueError(
            f"{path}, line {line}: {found[0]!r} is a control character; delete it, or save the file as UTF-8 text"
        )
    return text.replace("\ufeff", "")  # concatenated files have some inside


def check_not_empty(path: Path, rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError(f"{path} has no rows; set dataset.metadata or dataset.root to an index with clips")

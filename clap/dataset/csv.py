"""Own data: a folder of recordings and a CSV or JSON Lines file with their captions or labels."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.clip_table import ClipTable
from clap.dataset.index import check_name_length, shorten_repr
from clap.dataset.index_file import MAX_FIELD_LENGTH, Row, stream_csv, stream_jsonl
from clap.dataset.kept_index import Notes, keep_index
from clap.dataset.keywords import fill_keyword_templates

INVALID_CHARACTERS = re.compile(r"[\0\ud800-\udfff]")  # JSON can escape them, file systems and tokenizers reject them
JSONL_SUFFIXES = (".jsonl", ".ndjson")
OTHER_SUFFIXES = (".json", ".ods", ".parquet", ".xls", ".xlsx")


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
        files = {None: metadata} if not isinstance(metadata, Mapping) else metadata
        self.files = {split: check_file(Path(path), split) for split, path in files.items()}
        self.places: list[tuple[int, Path]] = []  # first row and file, while an index is read
        self.lines = array("q")  # of each row
        self.table = keep_index(
            *self.files.values(),
            options={"splits": list(self.files), "fractions": self.fractions, "root": os.path.abspath(self.root)},
            read=self.read_rows,
            merge=self.merge_rows,
            root=self.root,
            tolerant=True,
        )

    def clips(self, split: str) -> ClipTable:
        return self.table.select_split(split)

    def read_rows(self, notes: Notes) -> Iterator[tuple[str, Clip]]:
        """Split and clip of each row of the files."""
        self.places, self.lines = [], array("q")
        for file_split, path in self.files.items():
            self.places.append((len(self.lines), path))
            is_jsonl = path.suffix.lower() in JSONL_SUFFIXES
            empty, has_split = find_empty_columns(stream_rows(path), is_fixed=not is_jsonl)
            if empty:
                names = ", ".join(sorted(empty))
                notes.append((logging.WARNING, f"{path}: no row has a text in {names}, which is ignored"))
            for where, row in stream_rows(path):
                self.lines.append(int(where.rpartition(" ")[2]))
                row = {name: value for name, value in row.items() if name not in empty} if empty else row
                name = self.resolve_name(read_text(row, "path", where), where)
                if file_split is not None:
                    split = file_split
                else:
                    split = read_split(row, where) if has_split else assign_split(name, self.fractions)
                yield split, self.make_clip(name, row, where)

    def make_clip(self, name: str, row: Mapping, where: str) -> Clip:
        """The clip of one row; spaces at the ends of its path count if such a file exists (see `ClipTable`)."""
        labels = read_labels(row, where)
        return Clip(
            name,
            tuple(dict.fromkeys(read_captions(row, labels, where))),
            self.root / (row["path"] if row["path"] != row["path"].strip() else name),
            source=read_text(row, "recording", where),
            captions_from_labels=not find_columns(row, "caption"),
            **label_clip(labels),
        )

    def merge_rows(self, table: ClipTable) -> Iterator[tuple[str, Clip]] | None:
        """The clips of a table of rows, where rows of one path are one clip; None if no path is repeated."""
        encoded = table.table["id"].dictionary_encode()
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
        if len(np.unique(codes)) == len(codes):
            return None
        return self.merge_sorted(table, codes, np.argsort(codes, kind="stable"))

    def merge_sorted(self, table: ClipTable, codes: np.ndarray, order: np.ndarray) -> Iterator[tuple[str, Clip]]:
        rows = zip(order, table.numbers("split")[order], table.select(order), strict=True)
        for _, group in itertools.groupby(rows, key=lambda row: codes[row[0]]):
            (first, split, known), *others = group
            for row, other_split, clip in others:
                known = self.merge_clips(known, clip, (SPLITS[split], SPLITS[other_split]), (int(first), int(row)))
            yield SPLITS[split], known

    def merge_clips(self, known: Clip, clip: Clip, splits: tuple[str, str], rows: tuple[int, int]) -> Clip:
        """Append the captions of a later row of a path; ValueError unless split, label and recording are equal."""
        before, where = map(self.name_row, rows)
        if clip.path != known.path:
            raise ValueError(
                f"{where}: {str(clip.path)!r} and {str(known.path)!r} in {before} differ only in "
                "spaces at the ends; rename one"
            )
        labels = (", ".join(own.all_labels) or None for own in (clip, known))
        others = ("split", splits[1], splits[0]), ("recording", clip.source, known.source)
        for column, new, old in (*others, ("label", *labels)):
            if new != old:
                raise ValueError(f"{where}: {clip.id} has {column} {new}, but {old} in {before}; choose one")
        captions = tuple(dict.fromkeys(known.captions + clip.captions))
        from_labels = known.captions_from_labels and clip.captions_from_labels
        return replace(known, captions=captions, captions_from_labels=from_labels)

    def name_row(self, row: int) -> str:
        """File and line of a row."""
        path = next(path for first, path in reversed(self.places) if first <= row)
        return f"{path}, line {self.lines[row]}"

    def resolve_name(self, name: str | None, where: str) -> str:
        """The normalized path relative to root, with forward slashes; absolute paths must be inside root."""
        if name is None:
            raise ValueError(f"{where}: path is empty; write the path of a recording, or delete the row")
        check_name_length(name, "path", where)
        if "\\" not in name and os.path.normpath(name) == name and not name.startswith(("/", "..")) and name != ".":
            return name
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


def check_file(path: Path, split: str | None) -> Path:
    """Return the path of an index; ValueError if its kind or its split is not known."""
    if split is not None and split not in SPLITS:
        raise ValueError(f"dataset.metadata: {split!r} is not one of {', '.join(SPLITS)}; rename the key")
    if path.suffix.lower() in OTHER_SUFFIXES:
        raise ValueError(f"metadata={path} is not CSV or JSONL; export it as CSV UTF-8 (comma delimited)")
    return path


def stream_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV or JSONL, one by one."""
    return stream_jsonl(path) if path.suffix.lower() in JSONL_SUFFIXES else stream_csv(path, ("path",))


def find_empty_columns(rows: Iterator[Row], *, is_fixed: bool) -> tuple[set[str], bool]:
    """Columns to ignore: split if no row fills it, and captions if only labels are filled; and whether to read splits.

    Args:
        is_fixed: all rows have the same columns.
    """
    columns: set[str] = set()
    filled: set[str] = set()
    for _, row in rows:
        columns |= row.keys()
        filled |= {name for name in row.keys() - filled if is_filled(row[name])}
        has_caption = any(name.startswith("caption") and find_columns([name], "caption") for name in filled)
        if has_caption and ("split" in filled or (is_fixed and "split" not in columns)):
            break
    captions, has_labels = set(find_columns(columns, "caption")), bool(find_columns(filled, "label"))
    empty = ({"split"} & columns) - filled | (captions if has_labels and not captions & filled else set())
    return empty, "split" in columns - empty


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

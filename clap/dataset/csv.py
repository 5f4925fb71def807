"""Own data: a folder of recordings and a CSV or JSONL that says what is heard in them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clap.dataset.clips import SPLITS, Clip, Corpus

Row = tuple[int, dict[str, str]]  # line in the file, columns


class CSV(Corpus):
    """Clips from an index with the columns path, caption (repeated rows, or caption_1 ... caption_n), split, label.

    Captions or a label are needed, split and label are optional. Without a split column clips are divided by a hash of
    their path, so that adding one moves no other.

    Args:
        root: folder that the paths are relative to.
        metadata: one CSV or JSONL; or one for each split, {train: FILE, val: FILE, test: FILE}. In a JSONL, `caption` may
            be a list.
        val_fraction, test_fraction: shares of the clips where the index has no split column.
        max_duration: seconds; of a longer clip only this much is used.
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
        self.fractions = {"val": val_fraction, "test": test_fraction}
        if not self.root.is_dir():
            raise FileNotFoundError(f"dataset.root={root} is not a folder; give the one that the paths are relative to")
        self.splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
        files = metadata if isinstance(metadata, Mapping) else {None: metadata}
        for split, path in files.items():
            self.read_index(Path(path), split)

    def clips(self, split: str) -> list[Clip]:
        return self.splits[split]

    def read_index(self, path: Path, file_split: str | None) -> None:
        """Fill `splits` from one file; rows of one path become one clip with several captions."""
        if file_split is not None and file_split not in SPLITS:
            raise ValueError(f"dataset.metadata: {file_split!r} is not one of {', '.join(SPLITS)}")
        rows = read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path)
        require_columns(path, rows[0][1], ("path",))
        merged: dict[tuple[str, str], list[tuple[list[str], str | None]]] = {}
        for line, row in rows:
            where = f"{path}, line {line}"
            if not (row.get("path") or "").strip():
                raise ValueError(f"{where}: path is empty")
            split = file_split or self.read_split(row, where)
            merged.setdefault((split, row["path"].strip()), []).append(
                (read_captions(row, where), row.get("label") or None)
            )
        for (split, name), parts in merged.items():
            captions = tuple(dict.fromkeys(caption for captions, _ in parts for caption in captions))
            self.splits[split].append(Clip(name, captions, self.root / name, parts[0][1]))

    def read_split(self, row: Mapping[str, str], where: str) -> str:
        if "split" not in row:
            return self.draw_split(row["path"])
        if row["split"] not in SPLITS:
            raise ValueError(f"{where}: split={row['split']!r} is not one of {', '.join(SPLITS)}")
        return row["split"]

    def draw_split(self, name: str) -> str:
        draw = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
        for split, fraction in self.fractions.items():
            if draw < fraction:
                return split
            draw -= fraction
        return "train"


def read_captions(row: Mapping[str, str | list[str]], where: str) -> list[str]:
    """Captions of one row, from caption or caption_1 ... caption_n; from the label where there is neither."""
    columns = [name for name in row if name == "caption" or name.startswith("caption_")]
    if not columns and row.get("label"):
        return [f"the sound of {row['label']}"]
    if not columns:
        raise ValueError(
            f"{where}: no column caption, caption_1 ... caption_n or label; the columns are {', '.join(row)}"
        )
    captions: list[str] = []
    for column in columns:
        value = row[column]
        captions += value if isinstance(value, list) else [value]
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError(f"{where}: a caption is empty; write one, or leave the row out")
    return [caption.strip() for caption in captions]


def read_csv(path: Path) -> list[Row]:
    """Rows of a CSV with a header line, each with its line number; refuses rows with more or fewer fields than the header."""
    with open_index(path) as file:
        reader = csv.DictReader(file, restkey="", restval=None)
        rows = [(reader.line_num, row) for row in reader]
    for line, row in rows:
        if "" in row or None in row.values():
            fields = len(row) if "" not in row else len(row) - 1 + len(row[""])
            raise ValueError(
                f"{path}, line {line}: not as many fields as the header names ({', '.join(reader.fieldnames)}); "
                f"quote a caption that holds a comma ({fields} columns expected)"
            )
    return require_rows(path, rows)


def read_jsonl(path: Path) -> list[Row]:
    """Objects of a JSON-lines file, each with its line number."""
    rows = []
    with open_index(path) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {line}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {line}: not a JSON object")
            rows.append((line, row))
    return require_rows(path, rows)


def open_index(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; set dataset.metadata to a CSV or JSONL")
    return open(path, encoding="utf-8-sig", newline="")


def require_rows(path: Path, rows: list[Row]) -> list[Row]:
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def require_columns(path: Path, row: Mapping[str, str], columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in row]:
        raise ValueError(f"{path}: column {missing[0]} is missing; the columns are {', '.join(row)}")

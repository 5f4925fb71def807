"""Index files in CSV, JSON Lines and JSON, read row by row; every error names file and line. Imports no torch."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = tuple[str, dict]  # "FILE, line N" for errors, columns
LINE_END = re.compile(r"\r\n|\r|\n")
CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0e-\x1f\x7f]")  # frequent in binary files
MAX_FIELD_LENGTH = 20_000  # characters


def read_csv(path: Path, columns: Sequence[str] = (), *, encoding: str = "utf-8-sig") -> list[Row]:
    """All rows of `stream_csv`."""
    return list(stream_csv(path, columns, encoding=encoding))


def stream_csv(path: Path, columns: Sequence[str] = (), *, encoding: str = "utf-8-sig") -> Iterator[Row]:
    """The rows below the header line, each with the line that it starts on.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not CSV, has no rows, or lacks one of `columns`.
    """
    reader = csv.reader(read_lines(path, encoding), strict=True)
    header: list[str] | None = None
    next_line, is_empty = 1, True
    try:
        for fields in reader:
            where, next_line = f"{path}, line {next_line}", reader.line_num + 1
            if not any(map(str.strip, fields)):
                continue
            if header is None:
                header = check_column_names(path, [name.strip() for name in fields])
                continue
            if is_empty and (missing := [column for column in columns if column not in header]):
                raise ValueError(f"{path}: column {missing[0]} is missing; the columns are {', '.join(header)}")
            if any(map(str.strip, fields[len(header) :])) or len(fields) < len(header):
                raise ValueError(
                    f"{where}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); quote captions that contain a comma"
                )
            check_field_lengths(fields, where)
            row = dict(zip(header, fields, strict=False))  # fields without a name are blank
            row.pop("", None)
            is_empty = False
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {next_line}: not CSV ({error}); check for an unclosed quote") from None
    check_not_empty(path, is_empty)


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


def stream_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file, each with its line.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is not a JSON object, or the file has none.
    """
    is_empty = True
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        row = parse_json(text.rstrip("\r\n"), path, line)
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {line}: not a JSON object; write {{"path": ..., "caption": ...}}')
        is_empty = False
        yield f"{path}, line {line}", row
    check_not_empty(path, is_empty)


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
    """The text of an index without byte order marks; see `read_lines`."""
    return "".join(read_lines(path, encoding))


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    """The lines of an index with their ends, and without byte order marks, which spreadsheets write.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it cannot be decoded or contains control characters; the message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; set dataset.metadata to a CSV or JSONL, from the current folder, not from dataset.root"
        )
    with path.open(encoding=encoding, newline="") as file:
        lines = enumerate(file, start=1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except UnicodeDecodeError:
                number = find_undecodable_line(path, encoding)
                raise ValueError(f"{path}, line {number}: not UTF-8; save the file in that encoding") from None
            if found := CONTROL_CHARACTERS.search(line):
                raise ValueError(
                    f"{path}, line {number}: {found[0]!r} is a control character; delete it, or save the file as "
                    "UTF-8 text"
                )
            yield line.replace("\ufeff", "")  # concatenated files have some inside


def find_undecodable_line(path: Path, encoding: str) -> int:
    """The first line that cannot be decoded."""
    data = path.read_bytes()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return len(LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
    return 1  # the file has changed in the meantime


def check_not_empty(path: Path, is_empty: bool) -> None:
    if is_empty:
        raise ValueError(f"{path} has no rows; set dataset.metadata or dataset.root to an index with clips")

"""What the index files of published corpora are checked for, with file and line in every error."""

import os
from collections.abc import Mapping
from pathlib import Path

from clap.corpus import AUDIO_SUFFIXES, Corpus
from clap.download.addresses import list_downloads

MAX_REPR_LENGTH = 80  # characters of a value in an error
MAX_NAME_BYTES = 255  # bytes, of a file on any common file system


def require_root(corpus: Corpus) -> None:
    if not corpus.root.is_dir():
        raise FileNotFoundError(
            f"dataset.root={corpus.root} is not a folder; give the one that the corpus was unpacked in"
            + describe_source(corpus)
        )


def find_index(corpus: Corpus, name: str) -> Path:
    """The path of an index file under the corpus's root, which must be there."""
    path = corpus.root / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; dataset.root={corpus.root} must be the folder that holds {name}"
            + describe_source(corpus)
        )
    return path


def describe_source(corpus: Corpus) -> str:
    """Where a published corpus comes from, in brackets."""
    source = getattr(corpus, "source", None)
    if source is None:
        return ""
    command = f"; python -m clap download {corpus.name} --root data" if corpus.name in list_downloads() else ""
    return f" ({corpus.title} is published at {source}{command})"


def check_name(name: str, column: str, where: str) -> str:
    """A file's name, which leads into no other folder; spaces at its ends belong to it."""
    if not name.strip():
        raise ValueError(f"{where}: {column} is empty")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{where}: {column}={shorten_repr(name)} is no file name; it must not lead to another folder")
    check_name_length(name, column, where)
    return name


def check_name_length(name: str, column: str, where: str) -> None:
    """Refuse a path with a part that is too long to be a file's name."""
    if len(os.fsencode(max(name.split("/"), key=len))) > MAX_NAME_BYTES:
        raise ValueError(
            f"{where}: {column}={shorten_repr(name)} is longer than the {MAX_NAME_BYTES} bytes of a file name"
        )


def check_recording(name: str, column: str, where: str) -> str:
    """The name of a recording."""
    if Path(check_name(name, column, where)).suffix.lower() not in AUDIO_SUFFIXES:
        raise ValueError(f"{where}: {column}={shorten_repr(name)} is no recording ({', '.join(AUDIO_SUFFIXES)})")
    return name


def check_number(number: str, column: str, where: str) -> str:
    """The digits of a column."""
    if not number.isascii() or not number.isdecimal():
        raise ValueError(f"{where}: {column}={shorten_repr(number)} is no number")
    return number


def check_text(row: Mapping[str, str], column: str, where: str) -> str:
    """The text in a column without spaces at its ends; an empty one is refused."""
    if not (text := row[column].strip()):
        raise ValueError(f"{where}: {column} is empty")
    return text


def check_has_letters(row: Mapping[str, str], column: str, where: str) -> str:
    """The text in a column, which must hold a letter."""
    text = check_text(row, column, where)
    if not any(map(str.isalpha, text)):
        raise ValueError(f"{where}: {column}={shorten_repr(text)} has no words")
    return text


def shorten_repr(value: object) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_REPR_LENGTH else f"{text[:MAX_REPR_LENGTH]}…"


def check_unique(first: dict[str, str], key: str, column: str, where: str) -> None:
    """Note where a key is seen first, and refuse it the next time."""
    if first.setdefault(key, where) != where:
        raise ValueError(f"{where}: {column}={shorten_repr(key)} is there twice, first in {first[key]}; take one away")


def list_audio(folder: Path) -> dict[str, Path]:
    """The recordings of a folder by name without suffix; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return {Path(name).stem: folder / name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}

"""Checks for the index files of published corpora; every error names file and line."""

import functools
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from clap.audio_formats import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES, explain_undecodable
from clap.corpus import Corpus
from clap.download.addresses import list_downloads
from clap.text_table import shorten

log = logging.getLogger(__name__)

MAX_REPR_LENGTH = 80  # characters of a value in an error
MAX_NAME_BYTES = 255  # of a file name on common file systems


def require_root(corpus: Corpus) -> None:
    """FileNotFoundError if the root of the corpus is not a folder; the message says where the corpus is published."""
    if not corpus.root.is_dir():
        raise FileNotFoundError(
            f"root={corpus.root} is not a folder; set dataset.root to that of the unpacked corpus"
            + describe_source(corpus)
        )


def find_index(corpus: Corpus, name: str, *, remedy: str = "") -> Path:
    """The path of an index file below the root of the corpus; FileNotFoundError, with `remedy`, if it is missing."""
    path = corpus.root / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; root={corpus.root} must be the folder that contains {name}; set dataset.root"
            + (f", {remedy}" if remedy else "")
            + describe_source(corpus)
        )
    return path


def describe_source(corpus: Corpus) -> str:
    """Where a corpus is published and the command that downloads it, in brackets; empty if it is not published."""
    source = getattr(corpus, "source", None)
    if source is None:
        return ""
    command = f"; python -m clap download {corpus.name} --root data" if corpus.name in list_downloads() else ""
    return f" ({corpus.title} is published at {source}{command})"


def check_name(name: str, column: str, where: str) -> str:
    """Return a file name without folders, spaces at its ends included; ValueError for anything else."""
    if not name.strip():
        raise ValueError(f"{where}: {column} is empty; write a file name, or delete the row")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{where}: {column}={shorten_repr(name)} is not a file name; remove the folders from it")
    check_name_length(name, column, where)
    return name


def check_name_length(name: str, column: str, where: str) -> None:
    """ValueError if a part of a path is too long for a file name."""
    if len(os.fsencode(max(name.split("/"), key=len))) > MAX_NAME_BYTES:
        raise ValueError(
            f"{where}: {column}={shorten_repr(name)} is longer than the {MAX_NAME_BYTES} bytes of a file name; "
            "shorten it"
        )


def check_recording(name: str, column: str, where: str) -> str:
    """Return the file name of a recording; ValueError if its suffix is not one of AUDIO_SUFFIXES."""
    if Path(check_name(name, column, where)).suffix.lower() not in AUDIO_SUFFIXES:
        raise ValueError(
            f"{where}: {column}={shorten_repr(name)} is not a recording; the suffix must be one of "
            f"{', '.join(AUDIO_SUFFIXES)}"
        )
    return name


def check_number(number: str, column: str, where: str) -> str:
    """Return a text of ASCII digits; ValueError for anything else."""
    if not number.isascii() or not number.isdecimal():
        raise ValueError(f"{where}: {column}={shorten_repr(number)} is not a number; write digits only")
    return number


def check_text(row: Mapping[str, str], column: str, where: str) -> str:
    """The stripped text in a column; ValueError if it is empty."""
    if not (text := row[column].strip()):
        raise ValueError(f"{where}: {column} is empty; write a text, or delete the row")
    return text


def check_has_letters(row: Mapping[str, str], column: str, where: str) -> str:
    """The stripped text in a column; ValueError if it has no letters."""
    text = check_text(row, column, where)
    if not any(map(str.isalpha, text)):
        raise ValueError(f"{where}: {column}={shorten_repr(text)} has no letters; write words, or delete the row")
    return text


def shorten_repr(value: object) -> str:
    """The repr of a value for an error, cut off after 80 characters."""
    return shorten(repr(value), MAX_REPR_LENGTH)


def check_unique(seen: dict[str, str], key: str, column: str, where: str) -> None:
    """Add a key to `seen`, {key: its first row}; ValueError if an earlier row has it."""
    if seen.setdefault(key, where) != where:
        raise ValueError(f"{where}: {column}={shorten_repr(key)} is already in {seen[key]}; delete one of the rows")


def list_audio(folder: Path) -> dict[str, Path]:
    """{name without suffix: path} of the recordings in a folder; empty if there is no such folder.

    Recordings that must be converted first, such as .m4a of video downloads, are a warning.
    """
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    if other := [name for name in names if Path(name).suffix.lower() in CONVERTIBLE_SUFFIXES]:
        log.warning(
            "%d files in %s are not read; %s and so on", len(other), folder, explain_undecodable(Path(other[0]))
        )
    return {Path(name).stem: folder / name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}


def find_file(root: Path, name: str) -> Path:
    """root / name, or the only file whose name is the same text in another Unicode normal form.

    File systems and archives of macOS decompose letters such as é (NFD), most indexes compose them (NFC). A folder is
    listed only if a name with such a letter is not found.
    """
    path = root / name
    if name.isascii() or path.exists():
        return path
    found = root
    for part in Path(name).parts:
        if not (found / part).exists():
            same = list_normalized(found, found.stat().st_mtime_ns).get(unicodedata.normalize("NFC", part), [])
            if len(same) != 1:
                return path
            part = same[0]
        found /= part
    return found


@functools.lru_cache(maxsize=16)
def list_normalized(folder: Path, changed: int) -> Mapping[str, list[str]]:
    """{composed name: names} of the files in a folder that was `changed` at this time."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in os.listdir(folder) if folder.is_dir() else ():
        names[unicodedata.normalize("NFC", name)].append(name)
    return dict(names)

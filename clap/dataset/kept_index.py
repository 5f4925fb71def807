"""The parsed index of a corpus, kept as an Arrow file next to its source and rebuilt when that changes."""

import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from clap.corpus import Clip
from clap.dataset.clip_table import ClipTable

log = logging.getLogger(__name__)
FORMAT = 1  # of the clips that are made from an index; a change of the columns or of their meaning raises it
Notes = list[tuple[int, str]]  # level and text of messages about an index, which are logged each time it is opened
Rows = Iterator[tuple[str, Clip]]  # split and clip


def keep_index(
    *sources: Path,
    options: Mapping[str, Any],
    read: Callable[[Notes], Rows],
    merge: Callable[[ClipTable], Rows | None] | None = None,
    root: Path,
    tolerant: bool = False,
) -> ClipTable:
    """The clips of an index, from `.NAME.clips.arrow` next to its first file, or read from the index and kept there.

    The sources are compared by their content, since a file can change without a new modification time. If their folder
    is not writable, the clips are kept in the user's cache folder.

    Args:
        sources: the files of the index.
        options: what the clips depend on besides the sources, as JSON.
        read: yields split and clip of each row; messages that it adds to the notes before its first clip are logged.
        merge: split and clip of each clip of a table of rows; None if the rows are the clips.
        root, tolerant: see `ClipTable`.

    Raises:
        OSError: the clips cannot be written.
    """
    key = {"format": FORMAT, "options": options, "sources": [describe_file(path) for path in sources]}
    metadata = {"key": json.dumps(key)}
    place = choose_place(sources[0])
    with suppress(FileNotFoundError, pa.ArrowInvalid):
        table = ClipTable.read(place, root=root, tolerant=tolerant)
        if table.metadata.get("key") == metadata["key"]:
            log_notes(json.loads(table.metadata["notes"]))
            return table
    notes: Notes = []
    rows = read(notes)
    first = list(itertools.islice(rows, 1))  # after which the notes are complete
    metadata["notes"] = json.dumps(notes)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{place.name}.") as folder:
        path = Path(folder, "rows.arrow")
        ClipTable.write(path, itertools.chain(first, rows), root=root, metadata=metadata)
        merged = None if merge is None else merge(ClipTable.read(path, root=root, tolerant=tolerant))
        if merged is not None:
            path = Path(folder, "clips.arrow")
            ClipTable.write(path, merged, root=root, metadata=metadata)
        table = ClipTable.read(path, root=root, tolerant=tolerant)  # before a process with other options replaces it
        os.replace(path, place)
    table.file = place
    log_notes(notes)
    return table


def log_notes(notes: Notes) -> None:
    for level, text in notes:
        log.log(level, "%s", text)


def describe_file(path: Path) -> tuple[str, str]:
    """Name and digest of the content of a file; no digest if it is missing."""
    if not path.is_file():
        return path.name, ""
    with path.open("rb") as file:
        return path.name, hashlib.file_digest(file, "sha256").hexdigest()


def choose_place(source: Path) -> Path:
    """Where the clips of an index are kept."""
    name = f".{source.name}.clips.arrow"
    if os.access(source.parent, os.W_OK):
        return source.with_name(name)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clap"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"{hashlib.sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:16]}{name}"

"""Which recordings are missing: folders are listed once, since looking up each file is slow on a network drive."""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.atomic import atomic_path
from clap.corpus import Clip
from clap.dataset.clip_table import ClipTable, join
from clap.dataset.index import find_file

FEW = 1000  # clips that are looked up one by one
FEW_IN_FOLDER = 8
MIN_AGE = 2.0  # seconds, the coarsest file system clock: a younger folder can change without a new modification time
CHUNK = 100_000  # names that are converted at once
MOST_NAMED = 20
FOUND_SCHEMA = pa.schema(
    [
        ("folder", pa.binary()),  # relative to the root
        ("changed", pa.int64()),  # modification time in ns when it was listed; 0: list it again
        ("inode", pa.int64()),
        ("rows", pa.int64()),  # number of clips
        ("missing", pa.list_(pa.int32())),  # rows of the table
        ("unsure", pa.list_(pa.int32())),  # rows that are looked up each time: links, and other spellings of names
    ]
)


@dataclass
class Listed:
    """What the listing of one folder says of the clips in it, as rows of their table."""

    folder: bytes
    changed: int = 0
    inode: int = 0
    rows: int = 0
    missing: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    unsure: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


def find_missing(table: ClipTable) -> np.ndarray:
    """Whether the file of each clip is missing, (clips,); a clip without a path is not missing.

    What was found for the table of a file is kept next to it. A folder is listed again if its modification time has
    changed, which it does when a file is added, deleted or renamed; links are followed each time.
    """
    if len(table) <= FEW:
        return np.array([clip.path is not None and not clip.path.is_file() for clip in table], dtype=bool)
    if table.file is None:
        return mark_missing(table, list_folders(table, {}))
    whole = table.whole()
    folder = table.file.with_suffix(".found")
    with suppress(OSError):
        folder.mkdir(exist_ok=True)  # before folders are listed: it may be in one of them
    path = folder / "recordings.arrow"
    known = read_found(path, table)
    current = {name: listed for name, listed in known.items() if is_unchanged(table, listed)}
    if not known or len(current) < len(known):
        known = {listed.folder: listed for listed in list_folders(whole, current)}
        with suppress(OSError):
            write_found(path, table, known)
    missing = mark_missing(whole, known.values())
    return missing if table.rows is None else missing[table.rows]


def mark_missing(table: ClipTable, folders: "Iterator[Listed]") -> np.ndarray:
    """The missing clips of listed folders, (clips,) bool."""
    missing = np.zeros(len(table), dtype=bool)
    for listed in folders:
        missing[listed.missing] = True
        for row in listed.unsure.tolist():
            missing[row] = not table[row].path.is_file()
    return missing


def list_folders(table: ClipTable, known: dict[bytes, Listed]) -> Iterator[Listed]:
    """List the folders of a table that are not known."""
    codes, names, folders = split_paths(table)
    order = np.argsort(codes, kind="stable").astype(np.int32)
    ends = np.searchsorted(codes[order], np.arange(len(folders)), side="right")
    first = int(np.searchsorted(codes[order], 0))  # behind the clips without a path
    for folder, end in zip(folders, ends.tolist(), strict=True):
        rows, first = order[first:end], end
        yield known[folder] if folder in known else list_folder(table, folder, rows, names)


def split_paths(table: ClipTable) -> tuple[np.ndarray, pa.ChunkedArray, list[bytes]]:
    """Number of the folder of each clip (clips,), -1 without a path; names of the files; folders."""
    numbers: dict[bytes, int] = {}
    codes, names = [], []
    for batch in table.batches("path"):
        paths = batch["path"]
        folders = pc.replace_substring_regex(paths, r"(?s)/?[^/]*$", "").combine_chunks().dictionary_encode()
        own = np.array([numbers.setdefault(name, len(numbers)) for name in folders.dictionary.to_pylist()] + [-1])
        codes.append(own[folders.indices.fill_null(len(own) - 1).to_numpy()].astype(np.int32))
        names += pc.replace_substring_regex(paths, r"(?s)^.*/", "").chunks
    return np.concatenate(codes), pa.chunked_array(names, pa.binary()), list(numbers)


def list_folder(table: ClipTable, folder: bytes, rows: np.ndarray, names: pa.ChunkedArray) -> Listed:
    """Compare the clips of a folder, as rows of the table, with the files in it."""
    name, now = os.fsdecode(folder), time.time_ns()
    place = find_file(table.root, name) if table.tolerant and table.root is not None else join(table.root, name)
    listed = Listed(folder, rows=len(rows))
    try:
        status = os.stat(place)
    except OSError:
        files, links = pa.array([], pa.binary()), set()
    else:
        if status.st_mtime_ns < now - MIN_AGE * 1e9:
            listed.changed, listed.inode = status.st_mtime_ns, status.st_ino
        if len(rows) <= FEW_IN_FOLDER:
            return look_up(table, listed, rows)
        files, links = scan_folder(place)
    own = names.take(pa.array(rows))
    absent = np.flatnonzero(~pc.is_in(own, value_set=files).to_numpy(zero_copy_only=False))
    uncertain = [is_uncertain(text, links, table.tolerant) for text in own.take(pa.array(absent)).to_pylist()]
    uncertain = np.array(uncertain, dtype=bool)
    listed.missing, listed.unsure = rows[absent[~uncertain]], rows[absent[uncertain]]
    return listed


def is_uncertain(name: bytes, links: set[bytes], tolerant: bool) -> bool:
    """Whether a clip that no file in its folder has the name of may still have a recording."""
    return name in links or (tolerant and (not name.isascii() or name != name.strip()))


def look_up(table: ClipTable, listed: Listed, rows: np.ndarray) -> Listed:
    """The state of a folder with few clips, whose files are looked up."""
    modes = []
    for row in rows.tolist():
        try:
            modes.append(os.lstat(table[row].path).st_mode)
        except OSError:
            modes.append(0)
    files = np.array([stat.S_ISREG(mode) for mode in modes])
    sure = files | np.array([mode == 0 and not table.tolerant for mode in modes])
    listed.missing, listed.unsure = rows[sure & ~files], rows[~sure]
    return listed


def scan_folder(place: Path) -> tuple[pa.Array, set[bytes]]:
    """Names of the files and of the links in a folder."""
    files, names, links = [], [], set()
    with os.scandir(os.fsencode(place)) as entries:
        for entry in entries:
            if entry.is_symlink():
                links.add(entry.name)
            elif entry.is_file(follow_symlinks=False):
                names.append(entry.name)
            if len(names) == CHUNK:
                files.append(pa.array(names, pa.binary()))
                names = []
    return pa.concat_arrays([*files, pa.array(names, pa.binary())]), links


def is_unchanged(table: ClipTable, listed: Listed) -> bool:
    """Whether a folder has not changed since it was listed."""
    try:
        status = os.stat(join(table.root, os.fsdecode(listed.folder)))
    except OSError:
        return False
    return (status.st_mtime_ns, status.st_ino) == (listed.changed, listed.inode)


def read_found(path: Path, table: ClipTable) -> dict[bytes, Listed]:
    """{folder: what was found}; empty if nothing is known of this table and root."""
    try:
        found = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid):
        return {}
    if found.schema.metadata != describe(table):
        return {}
    rows = zip(*(found[name].to_pylist() for name in ("folder", "changed", "inode", "rows")), strict=True)
    lists = zip(found["missing"], found["unsure"], strict=True)
    return {
        row[0]: Listed(*row, *(own.values.to_numpy(zero_copy_only=False) for own in pair))
        for row, pair in zip(rows, lists, strict=True)
    }


def write_found(path: Path, table: ClipTable, known: dict[bytes, Listed]) -> None:
    """Keep what was found; OSError if the folder is not writable."""
    columns = [pa.array([getattr(item, name) for item in known.values()], kind) for name, kind in FIELDS]
    with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as file:
        schema = FOUND_SCHEMA.with_metadata(describe(table))
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


FIELDS = [(column.name, column.type) for column in FOUND_SCHEMA]


def describe(table: ClipTable) -> dict[bytes, bytes]:
    """The index and the root that rows and folders refer to."""
    status = os.stat(table.file)
    index = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
    return {b"index": index.encode(), b"root": os.fsencode(os.path.abspath(table.root or ""))}


def name_missing(clips: Iterable[Clip]) -> str:
    """The recordings of missing clips, those of a lost shard as one, and at most MOST_NAMED."""
    names = list(dict.fromkeys(str(clip.path or clip.id).partition(", lost clip ")[0] for clip in clips))
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

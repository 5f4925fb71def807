"""The kept index of shards: the clips of each tar beside it, and those of a split in one memory-mapped table.

A tar is read again when its size or modification time changes; a shard at an address is read once. Imports no torch.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from clap.atomic import atomic_path, read_json
from clap.corpus import SPLITS, Lost
from clap.dataset.clip_table import BATCH, MEMBER, SCHEMA, ClipTable, decode, encode
from clap.dataset.shard_cache import ShardCache
from clap.dataset.tar_index import TarContent, read_tar
from clap.fetch import FetchError
from clap.progress import progress_bar

log = logging.getLogger(__name__)

VERSION = "1"  # of what an index holds; raise it when `read_tar` gives other clips
THREADS = 8  # that read or fetch tars
ATTEMPTS = 10  # to write a table that is not read back
COUNTS = "shards.json"  # what `python -m clap shard` writes beside the tars: {"shards": {NAME: {"clips": number}}}


@dataclass(frozen=True)
class Shard:
    """One tar of a split.

    Args:
        place: path or address.
        prefix: of the ids of its clips, unique in the split.
        num_clips: as its writer has counted; None: not known.
    """

    place: Path | str
    prefix: str
    num_clips: int | None = None

    @property
    def is_remote(self) -> bool:
        return isinstance(self.place, str)


@dataclass
class TarIndex:
    """The index of one tar.

    Attributes:
        path: of its table; None: the tar cannot be read.
        problems, damage: see `TarContent`.
    """

    path: Path | None
    num_clips: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    damage: str | None = None


def list_shards(places: Sequence[Path | str]) -> list[Shard]:
    """Shards with prefixes from the last parts of their names, as few as differ, and with the counts beside them."""
    parts = [
        str(place).partition("?")[0].removesuffix(".tar").replace("://", "/").strip("/").split("/") for place in places
    ]
    for length in range(1, max(map(len, parts), default=1) + 1):
        prefixes = ["/".join(part[-length:]) for part in parts]
        if len(set(prefixes)) == len(prefixes):
            break
    else:
        repeated = next(name for name in prefixes if prefixes.count(name) > 1)
        raise ValueError(f"{repeated}.tar is listed twice; list each shard once")
    folders = {place.parent for place in places if isinstance(place, Path)}
    counts = {folder: read_json(folder / COUNTS).get("shards", {}) for folder in folders}
    return [
        Shard(place, prefix, counts[place.parent].get(place.name, {}).get("clips") if isinstance(place, Path) else None)
        for place, prefix in zip(places, prefixes, strict=True)
    ]


def open_split(
    shards: Sequence[Shard], split: str, *, name: str, cache: ShardCache, caption_key: str, folder: Path | None
) -> tuple[ClipTable, list[Lost]]:
    """The clips of a split and what it lost, from the kept index, or from the tars if that is missing or outdated.

    Args:
        name: of the corpus, in messages.
        folder: where the index of the split is kept; None, or a folder that is not writable: in that of the cache.

    Raises:
        ValueError: a tar is compressed.
        OSError: no index can be written.
    """
    if not shards:
        return ClipTable.from_clips([]), []
    states = [f"{shard.place} {shard.prefix} {find_state(shard)}" for shard in shards]
    key = hashlib.sha256(json.dumps([VERSION, caption_key, split, states]).encode()).hexdigest()
    indexes = cache.folder / "indexes"
    paths = [indexes / f"{key[:32]}.arrow"]
    if folder is not None:
        paths.insert(0, folder / f".{split}.clips.arrow")
    kept = find_table(paths, key)
    if kept is None:
        found = index_shards(shards, cache, caption_key, name=f"{name} {split}")
        if any(index.path is None and shard.is_remote for shard, index in zip(shards, found, strict=True)):
            key += " incomplete"  # the next start requests the missing shards again
        kept = keep(paths, key, lambda path: write_split(path, shards, found, split, key))
    table = kept[1]
    return table, [Lost(**entry) for entry in json.loads(table.metadata["lost"])]


def find_state(shard: Shard) -> str:
    """What changes when a local tar changes; what is at an address does not change."""
    try:
        status = None if shard.is_remote else os.stat(shard.place)
    except OSError as error:
        return str(error.strerror)
    return "" if status is None else f"{status.st_size} {status.st_mtime_ns}"


def find_table(paths: Sequence[Path], key: str) -> tuple[Path, ClipTable] | None:
    """The first kept table that is whole and of this state, and its path; None if there is none."""
    for path in paths:
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            table = ClipTable.read(path)
            if table.metadata.get("key") == key:
                return path, table
    return None


def keep(paths: Sequence[Path], key: str, write: Callable[[Path], None]) -> tuple[Path, ClipTable]:
    """Write a table to the first path that is writable, again if a process with other options has replaced it."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(ATTEMPTS):
                write(path)
                if (kept := find_table([path], key)) is not None:
                    return kept
            raise OSError(f"{path} cannot be read after it was written; set dataset.shard_cache to a local folder")
        except OSError as error:
            if path == paths[-1]:
                raise
            log.info("%s: no index is kept here (%s)", path.parent, error.strerror or error)
    raise AssertionError("no paths")


def index_shards(shards: Sequence[Shard], cache: ShardCache, caption_key: str, *, name: str) -> list[TarIndex]:
    """The index of each tar; the tars are read, or fetched, in threads."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        found = pool.map(lambda shard: index_shard(shard, cache, caption_key), shards)
        return list(progress_bar(found, total=len(shards), unit="shard", desc=f"index of {name}"))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C


def index_shard(shard: Shard, cache: ShardCache, caption_key: str) -> TarIndex:
    """The index of one tar, kept beside it, or in the cache if that is not possible."""
    text = json.dumps([VERSION, caption_key, shard.prefix, find_state(shard)])
    key = hashlib.sha256(text.encode()).hexdigest()
    paths = [cache.folder / "indexes" / f"{hashlib.sha256(f'{shard.place} {key}'.encode()).hexdigest()[:32]}.arrow"]
    if not shard.is_remote:
        paths.insert(0, shard.place.with_name(name_index(shard, caption_key)))
    kept = find_table(paths, key)
    if kept is None:
        try:
            file = cache.fetch(shard.place) if shard.is_remote else shard.place
            content = read_tar(file, shard.place, prefix=shard.prefix, caption_key=caption_key)
        except (FetchError, FileNotFoundError, PermissionError) as error:
            return TarIndex(None, damage=str(error))
        kept = keep(paths, key, lambda path: write_tar_index(path, content, key))
    path, table = kept
    problems, damage = (json.loads(table.metadata[name]) for name in ("problems", "damage"))
    return TarIndex(path, len(table), problems, damage)


def name_index(shard: Shard, caption_key: str) -> str:
    """Name of the index beside a tar; jobs with other captions or ids have their own and replace no other's."""
    own = shard.prefix, caption_key
    suffix = "" if own == (shard.place.stem, "text") else f".{hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]}"
    return f".{shard.place.name}{suffix}.clips.arrow"


def write_tar_index(path: Path, content: TarContent, key: str) -> None:
    metadata = {"key": key, "problems": json.dumps(content.problems), "damage": json.dumps(content.damage)}
    ClipTable.write(path, ((SPLITS[0], clip) for clip in content.clips), metadata=metadata)


def write_split(path: Path, shards: Sequence[Shard], found: Sequence[TarIndex], split: str, key: str) -> None:
    """Join the tables of all tars, without clips whose id an earlier one has."""
    usable = [(shard, index) for shard, index in zip(shards, found, strict=True) if index.num_clips]
    first, repeated = find_first_ids([index.path for _, index in usable])
    lost = list_lost(shards, found) + [
        Lost(f"{usable[number][0].place}: {clip_id}", "duplicate id, used in an earlier shard")
        for number, clip_id in repeated
    ]
    metadata = {"key": key, "lost": json.dumps([asdict(entry) for entry in lost])}
    tables = (
        convert_table(ClipTable.read(index.path).table.filter(pa.array(own)), shard, split)
        for (shard, index), own in zip(usable, first, strict=True)
    )
    with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as file:
        with pa.ipc.new_file(file, SCHEMA.with_metadata(metadata)) as writer:
            for batch in join_tables(tables):
                writer.write_batch(batch)


def find_first_ids(paths: Sequence[Path]) -> tuple[list[np.ndarray], list[tuple[int, str]]]:
    """For each table, whether its rows have ids that no earlier row has; table and id of the other rows."""
    columns = [ClipTable.read(path).table["id"] for path in paths]
    ids = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.binary())
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy() if len(ids) else np.empty(0, np.int32)
    is_first = np.zeros(len(codes), dtype=bool)
    is_first[np.unique(codes, return_index=True)[1]] = True
    starts = np.cumsum([0, *map(len, columns)])
    repeated = [
        (int(np.searchsorted(starts, row, side="right")) - 1, decode(ids[int(row)].as_py()))
        for row in np.flatnonzero(~is_first)
    ]
    return [is_first[first:end] for first, end in itertools.pairwise(starts)], repeated


def convert_table(table: pa.Table, shard: Shard, split: str) -> pa.Table:
    """The table of a tar with the place of its shard, which may have moved, and the split."""
    place = pa.array([encode(str(shard.place))] * len(table), pa.binary())
    parts = [place, *table["member"].combine_chunks().flatten()[1:]]
    numbers = pa.array([SPLITS.index(split)] * len(table), pa.int8())
    columns = {"member": pa.StructArray.from_arrays(parts, fields=list(MEMBER)), "split": numbers}
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def join_tables(tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Batches of about BATCH rows from tables of any length."""
    waiting: list[pa.Table] = []
    for table in itertools.chain(tables, [None]):
        if waiting and (table is None or sum(map(len, waiting)) + len(table) > BATCH):
            yield from pa.concat_tables(waiting).combine_chunks().to_batches()
            waiting = []
        waiting += [] if table is None else [table]


def list_lost(shards: Sequence[Shard], found: Sequence[TarIndex]) -> list[Lost]:
    """The clips that the tars name and do not have, and the number that is missing in damaged ones.

    A damaged tar counts as many clips as its writer has counted, or else as the others have on average.
    """
    whole = [index.num_clips + len(index.problems) for index in found if index.damage is None]
    usual = round(np.mean(whole)) if whole else 1
    lost = []
    for shard, index in zip(shards, found, strict=True):
        lost += [Lost(f"{shard.place}: {name}", reason) for name, reason in index.problems.items()]
        expected = usual if shard.num_clips is None else shard.num_clips
        if index.damage is not None:
            missing = max(1, expected - index.num_clips - len(index.problems))
            lost.append(Lost(str(shard.place), index.damage.removeprefix(f"{shard.place}: "), missing))
    return lost

"""Clips in columns: a memory-mapped Arrow file, of which a Clip is made when it is read. Imports no torch.

A list needs about 2 KB for each clip, which each worker copies as it counts references; columns are mapped from disk
and shared by all processes.
"""

import hashlib
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.atomic import atomic_path
from clap.corpus import SPLITS, Clip
from clap.dataset.index import find_file
from clap.waveform import Member

BATCH = 2**16  # clips that are written, or made to Python objects, at once
TEXTS = pa.list_(pa.string())
MEMBER = pa.struct([("shard", pa.binary()), ("offset", pa.int64()), ("size", pa.int64()), ("name", pa.binary())])
SCHEMA = pa.schema(
    [
        ("split", pa.int8()),  # position in SPLITS
        ("id", pa.binary()),  # as UTF-8 with surrogates: names of files, as ids may be, are not always text
        ("captions", TEXTS),
        ("path", pa.binary()),  # relative to the root
        ("label", pa.string()),
        ("keywords", TEXTS),
        ("source", pa.binary()),
        ("captions_from_labels", pa.bool_()),
        ("labels", TEXTS),
        ("digest", pa.int64()),  # see `digest_clip`
        ("captions_digest", pa.int64()),  # equal for clips with equal captions
        ("member", MEMBER),
    ]
)


class ClipTable(Sequence[Clip]):
    """Clips as rows of a table, or some of its rows in any order.

    Args:
        table: with the columns of SCHEMA.
        root: folder of relative paths.
        rows: (clips,) of the table; None: all.
        tolerant: a file is also found under another spelling of its name (see `find_file`); the id is the name.
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        root: Path | None = None,
        rows: np.ndarray | None = None,
        tolerant: bool = False,
    ) -> None:
        self.table, self.root, self.rows, self.tolerant = table, root, rows, tolerant
        self.file: Path | None = None
        self.objects: Sequence[Clip] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not forked maps the file itself."""
        return vars(self) | ({} if self.file is None else {"table": self.table.schema.metadata})

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.file is not None:
            expected, self.table = self.table, map_table(self.file)
            if self.table.schema.metadata != expected:
                raise RuntimeError(f"{self.file} was replaced while it was in use; start the run again")

    @classmethod
    def from_clips(cls, clips: Iterable[Clip], *, split: str = SPLITS[0]) -> "ClipTable":
        """A table in memory; clips of a class of their own stay as they are."""
        found = cls(pa.Table.from_batches(encode_clips(((split, clip) for clip in clips), root=None)))
        if isinstance(clips, Sequence) and any(type(clip) is not Clip for clip in clips):
            found.objects = clips
        return found

    @classmethod
    def write(
        cls,
        path: Path,
        rows: Iterable[tuple[str, Clip]],
        *,
        root: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write (split, clip) rows to a file, in batches and atomically.

        Args:
            root: folder that paths are written relative to.
            metadata: of the file, see the property.

        Raises:
            OSError: the file cannot be written; an existing file is unchanged.
        """
        batches = encode_clips(rows, root=root)
        first = next(batches)
        with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as file:
            schema = SCHEMA.with_metadata(dict(metadata or {}))
            with pa.ipc.new_file(file, schema) as writer:
                for batch in itertools.chain([first], batches):
                    writer.write_batch(batch)

    @classmethod
    def read(cls, path: Path, *, root: Path | None = None, tolerant: bool = False) -> "ClipTable":
        """The memory-mapped table of a file.

        Raises:
            FileNotFoundError: the file is missing.
            pa.ArrowInvalid: it is not a whole Arrow file.
        """
        found = cls(map_table(path), root=root, tolerant=tolerant)
        found.file = path
        return found

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of `write`."""
        return {key.decode(): value.decode() for key, value in (self.table.schema.metadata or {}).items()}

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int | slice) -> "Clip | ClipTable":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        index = range(len(self))[operator.index(index)]  # counts negative ones from the end; IndexError
        row = index if self.rows is None else int(self.rows[index])
        return self.make_clip(self.table.slice(row, 1).to_pylist()[0]) if self.objects is None else self.objects[row]

    def __iter__(self) -> Iterator[Clip]:
        if self.objects is not None:
            yield from (self[i] for i in range(len(self)))
            return
        for batch in self.batches():
            yield from map(self.make_clip, batch.to_pylist())

    def select(self, indices: np.ndarray) -> "ClipTable":
        """The clips at indices, in their order, without a copy of the columns."""
        rows = np.asarray(indices) if self.rows is None else self.rows[indices]
        return self.with_rows(rows.astype(np.int32))

    def whole(self) -> "ClipTable":
        """All clips of the table."""
        return self.with_rows(None)

    def with_rows(self, rows: np.ndarray | None) -> "ClipTable":
        """Other rows of the same table."""
        chosen = ClipTable(self.table, root=self.root, rows=rows, tolerant=self.tolerant)
        chosen.file, chosen.objects = self.file, self.objects
        return chosen

    def select_split(self, split: str) -> "ClipTable":
        """The clips of a split."""
        return self.select(np.flatnonzero(self.numbers("split") == SPLITS.index(split)))

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers or truth values, (clips,)."""
        column = self.table[name].to_numpy()
        return column if self.rows is None else column[self.rows]

    def batches(self, *names: str) -> Iterator[pa.Table]:
        """The clips in tables of at most BATCH rows, with some columns or all."""
        table = self.table.select(list(names)) if names else self.table
        for first in range(0, len(self), BATCH):
            if self.rows is None:
                yield table.slice(first, BATCH)
            else:  # `take` copies all of the columns that it is called on
                rows = self.rows[first : first + BATCH]
                start, end = int(rows.min()), int(rows.max()) + 1
                yield table.slice(start, end - start).take(rows - start)

    def make_clip(self, row: Mapping[str, Any]) -> Clip:
        """The clip of a row."""
        clip_id, source = decode(row["id"]), decode(row["source"])
        return Clip(
            clip_id,
            tuple(row["captions"]),
            None if row["path"] is None else self.find_path(os.fsdecode(row["path"]), clip_id),
            row["label"],
            tuple(row["keywords"]),
            source,
            row["captions_from_labels"],
            tuple(row["labels"]),
            None if row["member"] is None else self.make_member(**row["member"]),
        )

    def make_member(self, shard: bytes, offset: int, size: int, name: bytes) -> Member:
        """The member of a tar; an address of a tar stays a text."""
        place = os.fsdecode(shard)
        return Member(place if "://" in place else join(self.root, place), offset, size, os.fsdecode(name))

    def find_path(self, path: str, clip_id: str) -> Path:
        """The file of a clip; in a tolerant table, spaces at the ends of a path count if such a file exists."""
        exact = join(self.root, path)
        if not self.tolerant or (path != path.strip() and exact.is_file()):
            return exact
        return find_file(self.root, clip_id)


class JoinedClips(Sequence[Clip]):
    """The clips of several sequences, one after the other; of a list of clips, a table is made."""

    def __init__(self, parts: Iterable[Sequence[Clip]]) -> None:
        self.tables: list[ClipTable] = []
        for part in parts:
            self.tables += part.tables if isinstance(part, JoinedClips) else [as_table(part)]
        self.ends = np.cumsum([len(table) for table in self.tables], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[operator.index(index)]
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.tables[number][index - int(self.ends[number])]  # counted from the end of the table

    def __iter__(self) -> Iterator[Clip]:
        return itertools.chain.from_iterable(self.tables)

    def select(self, indices: np.ndarray) -> "JoinedClips":
        """The clips at ascending indices, without a copy of the columns."""
        starts = self.ends - [len(table) for table in self.tables]
        bounds = zip(self.tables, starts, *np.searchsorted(indices, [starts, self.ends]), strict=True)
        return JoinedClips(table.select(indices[first:last] - start) for table, start, first, last in bounds)

    def replace_clips(self, change: Callable[[Clip], Clip]) -> "JoinedClips":
        """Changed clips, in memory."""
        return JoinedClips(ClipTable.from_clips(map(change, table)) for table in self.tables)

    @property
    def captions(self) -> Iterator[str]:
        """Every caption of every clip."""
        for batch in self.batches("captions"):
            for texts in batch["captions"].to_pylist():
                yield from texts

    def count_captions(self) -> np.ndarray:
        """Number of captions of each clip, (clips,)."""
        counts = [pc.list_value_length(batch["captions"]).to_numpy() for batch in self.batches("captions")]
        return np.concatenate([np.zeros(0, np.int32), *counts])

    def count_keywords(self) -> int:
        """Number of clips with keywords."""
        lengths = (pc.list_value_length(batch["keywords"]).to_numpy() for batch in self.batches("keywords"))
        return sum(int(np.count_nonzero(own)) for own in lengths)

    def have_recording(self) -> np.ndarray:
        """Whether each clip is a file or a member of a tar, (clips,)."""
        batches = self.batches("path", "member")
        found = [pc.or_(batch["path"].is_valid(), batch["member"].is_valid()).to_numpy() for batch in batches]
        return np.concatenate([np.zeros(0, bool), *found])

    def numbers(self, name: str) -> np.ndarray:
        """See `ClipTable.numbers`."""
        return np.concatenate([table.numbers(name) for table in self.tables]) if self.tables else np.zeros(0, np.int64)

    def batches(self, *names: str) -> Iterator[pa.Table]:
        """See `ClipTable.batches`."""
        return itertools.chain.from_iterable(table.batches(*names) for table in self.tables)


def as_table(clips: Sequence[Clip]) -> ClipTable:
    """The clips as a table, which a table is already."""
    return clips if isinstance(clips, ClipTable) else ClipTable.from_clips(clips)


def map_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def encode_clips(rows: Iterable[tuple[str, Clip]], *, root: Path | None) -> Iterator[pa.RecordBatch]:
    """Record batches of (split, clip) rows; at least one, which may be empty."""
    rows = iter(rows)
    batch = list(itertools.islice(rows, BATCH))
    while True:
        columns = list(zip(*(encode_clip(split, clip, root) for split, clip in batch), strict=True))
        columns = columns or [()] * len(SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        yield pa.record_batch(arrays, schema=SCHEMA)
        if not (batch := list(itertools.islice(rows, BATCH))):
            return


def encode_clip(split: str, clip: Clip, root: Path | None) -> tuple:
    """The values of a clip in the order of SCHEMA."""
    member = clip.member
    return (
        SPLITS.index(split),
        encode(clip.id),
        clip.captions,
        encode_path(clip.path, root),
        clip.label,
        clip.keywords,
        encode(clip.source),
        clip.captions_from_labels,
        clip.labels,
        digest_clip(clip),
        digest_text(repr(clip.captions)),
        member and (encode_path(member.shard, root), member.offset, member.size, os.fsencode(member.name)),
    )


def digest_clip(clip: Clip) -> int:
    """64-bit digest of id, captions, label and keywords, not of the recording."""
    return digest_text(repr((clip.id, clip.captions, clip.label, clip.keywords)))


def digest_text(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def encode_path(path: Path | str | None, root: Path | None) -> bytes | None:
    """A path, relative to the root if it is inside; an address as it is."""
    if path is None:
        return None
    text = str(path)
    return os.fsencode(text if root is None else text.removeprefix(os.path.join(str(root), "")))


def join(root: Path | None, path: str) -> Path:
    return Path(path) if root is None else root / path


def encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")


def decode(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "surrogatepass")

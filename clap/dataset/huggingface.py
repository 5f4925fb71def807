"""A Hugging Face dataset with an Audio column, saved with save_to_disk of `datasets` and read with pyarrow."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.corpus import Clip, Corpus, check_split
from clap.dataset.csv import assign_split, check_fractions, find_columns, label_clip, read_captions, read_labels
from clap.dataset.index import find_file, require_root
from clap.waveform import AudioError, AudioHeader

log = logging.getLogger(__name__)

SPLIT_FOLDERS = {  # split -> accepted folder names
    "train": ("train",),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "evaluation", "eval"),
}


class HuggingFace(Corpus):
    """Clips from a saved Dataset or DatasetDict with an Audio column, and caption, caption_1 ... caption_n, or label.

    Recordings are read one row at a time from the memory-mapped Arrow files. Rows with the same file name and content
    are one clip with several captions. A caption column may contain lists. Clip ids, and with them the splits of a
    Dataset without splits, do not depend on the name and place of root.

    Layout of root: dataset_dict.json and a folder with state.json per split (DatasetDict), or state.json (Dataset).

    Args:
        name: the corpus in metric names.
        val_fraction, test_fraction: shares of the clips of a Dataset without splits, chosen by a hash of their names.
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root or a file is missing.
        ValueError: a file or row is invalid, or a fraction is out of range.
    """

    name = "huggingface"

    def __init__(
        self,
        root: str | Path,
        *,
        name: str = "huggingface",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_duration: float = 30.0,
    ) -> None:
        self.root, self.name, self.max_duration = Path(root), name, max_duration
        self.fractions = check_fractions(val=val_fraction, test=test_fraction)
        require_root(self)
        self.rows: dict[str, tuple[Path, int]] = {}  # clip id -> folder and row
        known = [name for names in SPLIT_FOLDERS.values() for name in names]
        others = sorted(path.parent.name for path in self.root.glob("*/state.json") if path.parent.name not in known)
        if others:
            log.warning("%s: %s not read; the splits are named %s", root, ", ".join(others), ", ".join(known))

    def clips(self, split: str) -> list[Clip]:
        check_split(split)
        if (self.root / "state.json").is_file():
            return [clip for clip in self.read_clips(self.root, "") if assign_split(clip.id, self.fractions) == split]
        if not (self.root / "dataset_dict.json").is_file():
            raise FileNotFoundError(
                f"root={self.root} contains neither state.json nor dataset_dict.json; set dataset.root to one "
                "that save_to_disk wrote (parquet: load_dataset('parquet', data_dir=...).save_to_disk(...))"
            )
        folders = [self.root / name for name in SPLIT_FOLDERS[split] if (self.root / name / "state.json").is_file()]
        return [clip for folder in folders for clip in self.read_clips(folder, f"{folder.name}/")]

    def read_clips(self, folder: Path, prefix: str) -> list[Clip]:
        """The clips of one saved Dataset; their ids begin with `prefix`."""
        table = open_table(folder)
        column, classes = find_audio_column(folder, table.schema), read_class_names(table.schema)
        paths = pc.struct_field(table[column], "path").to_pylist()
        clips: dict[str, Clip] = {}
        for number, row in enumerate(table.drop_columns([column]).to_pylist()):
            where = f"{folder}, row {number}"
            if classes and row.get("label") is not None:
                numbers = row["label"] if isinstance(row["label"], list) else [row["label"]]
                row["label"] = [name_class(number, classes, where) for number in numbers]
            labels = read_labels(row, where)
            key = f"{prefix}{self.name_recording(paths[number]) or number}"
            if key in clips and not self.has_same_audio(key, table[column][number]):
                key = f"{prefix}{number}"
            captions = tuple(read_captions(row, labels, where))
            if key in clips:
                captions = tuple(dict.fromkeys(clips[key].captions + captions))
            self.rows.setdefault(key, (folder, number))
            from_labels = not find_columns(row, "caption")
            clips[key] = Clip(key, captions, captions_from_labels=from_labels, **label_clip(labels))
        return list(clips.values())

    def name_recording(self, path: str | None) -> str | None:
        """The path of a row; an absolute one inside root is relative to root, so that the folder can be moved."""
        root = Path(os.path.abspath(self.root))
        return path if not path or not Path(path).is_relative_to(root) else Path(path).relative_to(root).as_posix()

    def has_same_audio(self, key: str, other: pa.StructScalar) -> bool:
        """Whether the audio of a row equals that of the clip with this id."""
        return self.read_audio(key)["bytes"] == other.as_py()["bytes"]

    def read_audio(self, key: str) -> dict[str, Any]:
        folder, number = self.rows[key]
        table = open_table(folder)
        return table[find_audio_column(folder, table.schema)][number].as_py()

    @contextlib.contextmanager
    def open_clip(self, clip: Clip) -> Iterator[Clip]:
        """The clip with a path; embedded bytes are in a temporary file, because the decoders require a path."""
        audio = self.read_audio(clip.id)
        if audio["bytes"] is None:
            if not audio["path"]:
                raise AudioError(f"{clip.id}: the Audio column has neither bytes nor a path; save the audio")
            yield replace(clip, path=find_file(self.root, audio["path"]))
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(audio["path"] or "audio").name)
            path.write_bytes(audio["bytes"])
            try:
                yield replace(clip, path=path)
            except AudioError as error:
                raise AudioError(str(error).replace(str(path), f"{self.root}: {clip.id}")) from None

    def load(self, clip: Clip, **options: Any) -> np.ndarray:
        """See `Corpus.load`."""
        with self.open_clip(clip) as file:
            return super().load(file, **options)

    def load_samples(self, clip: Clip, **options: Any) -> tuple[np.ndarray, np.float32]:
        """See `Corpus.load_samples`."""
        if self.cache is None:
            return self.load(clip, **options), np.float32(1)
        with self.open_clip(clip) as file:
            return super().load_samples(file, **options)

    def identify(self, clip: Clip) -> str:
        """The hash of a recording's content."""
        audio = self.read_audio(clip.id)
        if audio["bytes"] is not None:
            return hashlib.blake2b(audio["bytes"]).hexdigest()
        with self.open_clip(clip) as found, found.path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()

    def read_header(self, clip: Clip) -> AudioHeader | None:
        """See `Corpus.read_header`."""
        with self.open_clip(clip) as file:
            return super().read_header(file)


@functools.lru_cache(maxsize=8)
def open_table(folder: Path) -> pa.Table:
    """The memory-mapped rows of a saved Dataset; cached per process."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        names = [Path(entry["filename"]).name for entry in state["_data_files"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a state.json of save_to_disk ({error}); save the dataset again") from None
    if state.get("_indices_data_files"):
        raise ValueError(f"{path}: the dataset has an indices mapping; save dataset.flatten_indices() instead")
    tables = []
    for name in names:
        try:
            tables.append(pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{folder / name}: not an Arrow stream ({error}); save the dataset again") from None
    if not tables or not sum(map(len, tables)):
        raise ValueError(f"{folder} has no rows; save a dataset with clips")
    return pa.concat_tables(tables)


def find_audio_column(folder: Path, schema: pa.Schema) -> str:
    """The name of the only Audio column, a struct of bytes and path; ValueError if there is none or several."""
    found = [field.name for field in schema if is_audio(field.type)]
    if len(found) != 1:
        raise ValueError(
            f"{folder}: {len(found)} Audio columns, exactly one is required; the columns are {', '.join(schema.names)}"
        )
    return found[0]


def is_audio(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def read_class_names(schema: pa.Schema) -> list[str]:
    """Class names of a column `label` of ClassLabels or lists of them, from the schema's metadata of `datasets`."""
    metadata: Mapping = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    label = metadata.get("info", {}).get("features", {}).get("label", {})
    label = label[0] if isinstance(label, list) and label else label  # of datasets below 2.0
    label = label.get("feature", label) if isinstance(label, Mapping) else label
    return list(label.get("names") or []) if isinstance(label, Mapping) else []


def name_class(number: int, classes: Sequence[str], where: str) -> str | None:
    """The name of a class; None for -1, the missing label of `datasets`."""
    if not -1 <= number < len(classes):
        raise ValueError(f"{where}: label={number} is not one of -1 ... {len(classes) - 1}")
    return None if number == -1 else classes[number]

"""Shards: tar files in webdataset's layout, as LAION and open_clip publish them, local or at any address."""

import contextlib
import logging
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clap.corpus import SPLITS, Clip, Corpus, Lost, check_split
from clap.dataset.clip_table import ClipTable
from clap.dataset.huggingface import SPLIT_FOLDERS
from clap.dataset.index import require_root
from clap.dataset.shard_cache import ShardCache
from clap.dataset.shard_index import list_shards, open_split
from clap.fetch import FetchError
from clap.waveform import AudioError, AudioHeader, Member

log = logging.getLogger(__name__)

MOST_LOGGED = 20  # damaged clips that are named
BRACES = re.compile(r"\{([^{}]*)\}")
COUNTS = re.compile(r"(\d+)\.\.(\d+)")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are refused by name

Places = str | Path | Sequence[str | Path] | None


class Shards(Corpus):
    """Clips from tars with the members KEY.flac (or another recording) and KEY.json, KEY.txt or KEY.cls.

    Captions are `text` in the JSON, a string or a list, or else the text of KEY.txt; KEY.cls has a label. The id of a
    clip is SHARD/KEY, or as `python -m clap shard` has stored it. Recordings are read by their offset, which an index
    has: it is made once and kept beside each tar. Training reads the shards in a random order, `open_shards` of them
    at a time, whose clips are shuffled.

    Args:
        root: folder with the tars in train/, val/ and test/; not with `train`, `val` or `test`.
        train, val, test: paths or addresses (http, s3 and others that fsspec reads) of the tars of a split: one, a
            list, or a pattern `{000000..000499}.tar`; or a local folder.
        name: the corpus in metric names.
        caption_key: of the captions in a JSON.
        open_shards: number of shards whose clips are shuffled together in training.
        shard_cache: folder of fetched shards, and of indexes that cannot be kept beside their tars.
        shard_cache_gigabytes: limit of the fetched shards; those used longest ago are removed.
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root is missing.
        ValueError: an option is invalid, or a tar is compressed.
    """

    name = "shards"
    loads_recordings = True  # `load_samples` only reads ahead, and again

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        train: Places = None,
        val: Places = None,
        test: Places = None,
        name: str = "shards",
        caption_key: str = "text",
        open_shards: int = 8,
        shard_cache: str | Path = "outputs/shards",
        shard_cache_gigabytes: float = 100.0,
        max_duration: float = 30.0,
    ) -> None:
        given = {"train": train, "val": val, "test": test}
        if (root is None) == all(places is None for places in given.values()):
            raise ValueError(
                f"root={root}, {', '.join(f'{key}={value}' for key, value in given.items())}: set dataset.root to a "
                "folder with train/, val/ and test/, or dataset.train, dataset.val and dataset.test to their tars"
            )
        if open_shards < 1:
            raise ValueError(f"open_shards={open_shards} must be 1 or more; set dataset.open_shards")
        self.root, self.name, self.max_duration = None if root is None else Path(root), name, max_duration
        self.caption_key, self.open_shards = caption_key, open_shards
        self.shard_cache = ShardCache(shard_cache, shard_cache_gigabytes)
        if self.root is not None:
            require_root(self)
            if not any(map(self.find_folder, SPLITS)):
                raise FileNotFoundError(
                    f"root={root} has no folder train, val or test; set dataset.root to one with tars in these, or "
                    "dataset.train, dataset.val and dataset.test to tars"
                )
        self.places = {split: expand_places(places) for split, places in given.items()}
        self.recent: deque[Path | str] = deque(maxlen=2 * open_shards)  # shards that are read, those of two groups
        self.splits: dict[str, tuple[ClipTable, list[Lost]]] = {}

    def clips(self, split: str) -> ClipTable:
        check_split(split)
        return self.open_split(split)[0]

    def find_lost(self, split: str) -> list[Lost]:
        """See `Corpus.find_lost`."""
        return self.open_split(split)[1]

    def open_split(self, split: str) -> tuple[ClipTable, list[Lost]]:
        """The clips of a split, and those that its tars should have and lost; read once."""
        if split not in self.splits:
            folder = self.find_folder(split)
            places = self.places[split] if self.root is None else list_tars(folder)
            table, lost = open_split(
                list_shards(places),
                split,
                name=self.name,
                cache=self.shard_cache,
                caption_key=self.caption_key,
                folder=folder,
            )
            for entry in lost[:MOST_LOGGED]:
                log.warning("%s split: %s: %s", split, entry.name, entry.reason)
            if len(lost) > MOST_LOGGED:
                log.warning("%s split: %d more clips are damaged", split, len(lost) - MOST_LOGGED)
            self.splits[split] = table, lost
        return self.splits[split]

    def find_folder(self, split: str) -> Path | None:
        """The folder of a split below root; None if there is none."""
        if self.root is None:
            return None
        return next((self.root / name for name in SPLIT_FOLDERS[split] if (self.root / name).is_dir()), None)

    def locate(self, clip: Clip) -> Member:
        """See `Corpus.locate`; of a remote shard the copy in the cache, which is fetched if it is missing."""
        member = clip.member
        if is_address(str(member.shard)):
            try:
                member = replace(member, file=self.shard_cache.fetch(member.shard))
            except FetchError as error:
                raise AudioError(f"{member}: {error}") from None
        return member

    def identify(self, clip: Clip) -> str | None:
        """See `Corpus.identify`; of a remote shard its address, at which nothing changes, so that it is not fetched."""
        member = clip.member
        return f"{member.shard} {member.offset} {member.size}" if is_address(str(member.shard)) else None

    def load_samples(
        self, clip: Clip, *, rng: np.random.Generator | None = None, **options: Any
    ) -> tuple[np.ndarray, np.float32]:
        """See `Corpus.load_samples`; in training, the system reads each new shard ahead."""
        shard = clip.member.shard
        if rng is not None and shard not in self.recent:
            self.recent.append(shard)
            with contextlib.suppress(OSError):  # which loading reports
                self.locate(clip).read_ahead()
        try:
            return super().load_samples(clip, rng=rng, **options)
        except AudioError:
            if is_address(str(shard)) and not self.shard_cache.path(shard).is_file():  # just removed for another shard
                return super().load_samples(clip, rng=rng, **options)
            raise

    def read_header(self, clip: Clip) -> AudioHeader | None:
        """See `Corpus.read_header`; None if it is in a remote shard without a copy, which is not fetched for it."""
        shard = clip.member.shard
        if is_address(str(shard)) and not self.shard_cache.path(shard).is_file():
            return None
        return super().read_header(clip)


def is_address(place: str) -> bool:
    return "://" in place


def expand_places(places: Places) -> list[Path | str]:
    """The tars of one path, folder, pattern or address, or of a list; local ones as paths.

    Raises:
        ValueError: a pattern has no or unknown braces.
    """
    if places is None:
        return []
    given = [places] if isinstance(places, str | Path) else list(places)
    found = [name for place in given for name in expand_braces(str(place))]
    found = [name if is_address(name) else Path(name) for name in (name.removeprefix("file://") for name in found)]
    return [tar for place in found for tar in (list_tars(place) if is_folder(place) else [place])]


def is_folder(place: Path | str) -> bool:
    return isinstance(place, Path) and not place.name.endswith(TAR_SUFFIXES) and place.is_dir()


def expand_braces(pattern: str) -> list[str]:
    """The names of a pattern, in the order of bash: {008..011} counts with leading zeros, {a,b} is a choice.

    Raises:
        ValueError: braces have neither numbers nor a choice.
    """
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    if numbers := COUNTS.fullmatch(match[1]):
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        values = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    elif "," in match[1]:
        values = match[1].split(",")
    else:
        raise ValueError(f"{pattern}: {match[0]} is not a pattern; write {{000000..000499}} or {{a,b}}")
    return [
        name for value in values for name in expand_braces(pattern[: match.start()] + value + pattern[match.end() :])
    ]


def list_tars(folder: Path | None) -> list[Path]:
    """The tars in a folder, in order of their names."""
    files = sorted(folder.iterdir()) if folder is not None else []
    return [path for path in files if path.name.endswith(TAR_SUFFIXES) and not path.name.startswith(".")]

"""Writes a corpus as shards: tars in webdataset's layout, which `clap.dataset.shards` reads as equal clips."""

import hashlib
import io
import itertools
import json
import logging
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from clap.atomic import atomic_path, read_json, write_json
from clap.corpus import Clip, Corpus
from clap.dataset.clip_table import JoinedClips
from clap.dataset.shard_index import COUNTS
from clap.dataset.tar_index import RECORD, record_clip
from clap.progress import progress_bar
from clap.waveform import AudioError, Member, check_present

log = logging.getLogger(__name__)

AHEAD = 64  # clips that are read, or encoded, at once
KEY_DIGITS, SHARD_DIGITS = 9, 6


@dataclass(frozen=True)
class ShardOptions:
    """What shards are written.

    Args:
        max_clips, max_bytes: of a shard, which ends with the clip that reaches one of them.
        sample_rate: Hz; recordings become mono FLAC of 16 bits at this rate. None: they are copied as they are.
        max_bad_fraction: share of clips without a recording that can be read, which are skipped.
    """

    max_clips: int = 1000
    max_bytes: float = 1e9
    sample_rate: int | None = None
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.max_clips < 1 or self.max_bytes < 1:
            raise ValueError(
                f"a shard of {self.max_clips} clips or {self.max_bytes:g} bytes is empty; set --max-clips and "
                "--max-gigabytes"
            )
        if self.sample_rate is not None and self.sample_rate < 1:
            raise ValueError(f"sample_rate={self.sample_rate} is not a number of Hz; set --sample-rate")

    @property
    def content(self) -> dict[str, Any]:
        """The options that the files depend on; a limit may be raised when a command resumes."""
        return {key: value for key, value in asdict(self).items() if key != "max_bad_fraction"}


@dataclass
class Packed:
    """A clip as the members of a tar, or why it is skipped."""

    clip: Clip
    suffix: str = ""
    audio: bytes = b""
    problem: str | None = None


def write_split(
    corpus: Corpus, clips: Sequence[Clip], folder: Path, options: ShardOptions, *, shuffle: bool, workers: int = 1
) -> dict[str, Any]:
    """Write the clips of a split as FOLDER/000000.tar and so on; shards that exist are kept.

    Args:
        shuffle: in a random order, which is the same each time: training shuffles only the clips of a few shards.
        workers: threads that read and encode.

    Returns:
        the content of shards.json: {"shards": {NAME: {"clips", "skipped", "bytes", "sha256"}}}.

    Raises:
        ValueError: the folder has shards of other clips or with other options, or too many clips cannot be read.
        OSError: a shard cannot be written.
    """
    table = JoinedClips([clips])
    order = np.random.default_rng(0).permutation(len(table)) if shuffle else np.arange(len(table))
    source = {"clips": hashlib.sha256(table.numbers("digest").tobytes()).hexdigest(), **options.content}
    index = read_json(folder / COUNTS) or {"source": source, "shards": {}}
    if index["source"] != source:
        raise ValueError(f"{folder} has shards of other clips or options; give a new folder, or delete this one")
    folder.mkdir(parents=True, exist_ok=True)
    done = keep_whole(index["shards"], folder)
    index["shards"] = done
    first = sum(entry["clips"] + entry["skipped"] for entry in done.values())
    skipped = sum(entry["skipped"] for entry in done.values())
    rest = pack_clips(corpus, table, order[first:].tolist(), options, workers)
    bar = progress_bar(rest, total=len(order), initial=first, unit="clip", desc=f"shards of {folder.name}")
    numbered = enumerate(bar, first)
    for number in itertools.count(len(done)):
        name = f"{number:0{SHARD_DIGITS}}.tar"
        entry = write_shard(folder / name, numbered, options)
        if entry is None:
            return index
        skipped += entry["skipped"]
        if skipped > options.max_bad_fraction * len(order):
            raise ValueError(
                f"{skipped} of {len(order)} clips of {corpus.name} cannot be read, see above; fix them, or raise "
                f"dataset.max_bad_fraction, now {options.max_bad_fraction:g}"
            )
        if not entry["clips"]:  # the last clips were skipped; a tar without any would count as damaged
            (folder / name).unlink()
            if done:
                list(done.values())[-1]["skipped"] += entry["skipped"]
        else:
            done[name] = entry
        write_json(folder / COUNTS, index)
    raise AssertionError("the count does not end")


def keep_whole(shards: dict[str, dict], folder: Path) -> dict[str, dict]:
    """The entries of the first shards, up to one whose file is missing or has another size."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    return dict(itertools.takewhile(lambda item: sizes.get(item[0]) == item[1]["bytes"], sorted(shards.items())))


def pack_clips(
    corpus: Corpus, table: JoinedClips, order: list[int], options: ShardOptions, workers: int
) -> Iterator[Packed]:
    """The clips in this order, read and encoded in threads."""
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(order), AHEAD):
            chunk = order[first : first + AHEAD]
            yield from pool.map(lambda index: pack_clip(corpus, table[index], options), chunk)


def pack_clip(corpus: Corpus, clip: Clip, options: ShardOptions) -> Packed:
    """The recording of a clip, copied or encoded."""
    try:
        if options.sample_rate is not None:
            waveform = corpus.load(clip, sample_rate=options.sample_rate, max_duration=None)
            return Packed(clip, ".flac", encode_flac(waveform, options.sample_rate))
        recording = corpus.locate(clip)
        if recording is None:
            raise ValueError(
                f"{clip.id}: {corpus.name} has no file of it to copy; set --sample-rate, so that it is written as FLAC"
            )
        check_present(recording)
        return Packed(clip, recording.suffix.lower(), read_bytes(recording))
    except AudioError as error:
        return Packed(clip, problem=str(error))


def read_bytes(recording: Path | Member) -> bytes:
    """All bytes of a recording; AudioError if it cannot be read."""
    try:
        return recording.read_bytes()
    except OSError as error:
        raise AudioError(f"{recording}: {error.strerror}") from None


def encode_flac(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Mono FLAC of 16 bits; the few samples above full scale, of lossy decoders, are clipped."""
    content = io.BytesIO()
    soundfile.write(content, waveform.clip(-1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def write_shard(path: Path, clips: Iterator[tuple[int, Packed]], options: ShardOptions) -> dict[str, Any] | None:
    """Write one shard of the next clips; None if there are none.

    Returns:
        number of clips, of skipped ones, bytes, and checksum.
    """
    count = skipped = size = 0
    first = next(clips, None)
    if first is None:
        return None
    with atomic_path(path) as partial, partial.open("wb") as file:
        target = HashedFile(file)
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for number, packed in itertools.chain([first], clips):
                if packed.problem is not None:
                    log.warning("skipped: %s", packed.problem)
                    skipped += 1
                    continue
                for suffix, content in ((packed.suffix, packed.audio), (".json", describe(packed.clip))):
                    info = tarfile.TarInfo(f"{number:0{KEY_DIGITS}}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                count, size = count + 1, size + len(packed.audio)
                if count >= options.max_clips or size >= options.max_bytes:
                    break
    return {"clips": count, "skipped": skipped, "bytes": target.size, "sha256": target.digest.hexdigest()}


def describe(clip: Clip) -> bytes:
    """The JSON of a clip: its captions under `text`, where webdataset's users expect them, and all else."""
    return json.dumps({"text": clip.captions, RECORD: record_clip(clip)}).encode()


class HashedFile:
    """Counts and hashes what is written to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.size += len(content)
        self.digest.update(content)
        return self.file.write(content)

"""The recording on YouTube or Freesound that a clip was cut from, given by its corpus or inferred from its name."""

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.corpus import Clip
from clap.dataset.clip_table import JoinedClips

YOUTUBE = re.compile(r"Y?([\w-]{11})(?:[_@](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII)
FREESOUND = re.compile(
    r"(\d+)__.+"  # file names of Freesound downloads
    r"|freesound[_-]?(\d+)"
    r"|[1-5]-(\d+)-[A-Z]-\d+"  # ESC-50
    r"|(\d+)-\d+-\d+-\d+",  # UrbanSound8K
    re.IGNORECASE,
)
SITES = ("youtube", "freesound")
# The same of many clips at once, in the syntax of RE2: what the stem of a name, or a whole path, shows of a recording.
STEMS = {
    "youtube": ("^Y?(?P<id>[A-Za-z0-9_-]{11})(?:[_@][0-9.]+(?:[_-][0-9.]+)?)?$",),
    "freesound": (
        "^0*(?P<id>[0-9]+)__",
        "(?i)^freesound[_-]?0*(?P<id>[0-9]+)$",
        "^[1-5]-0*(?P<id>[0-9]+)-[A-Z]-[0-9]+$",
        "^0*(?P<id>[0-9]+)-[0-9]+-[0-9]+-[0-9]+$",
    ),
}
PATHS = {"freesound": (r"(?i)freesound[^/]*/(?:.*/)?0*(?P<id>[0-9]+)(?:\.[A-Za-z][A-Za-z0-9]*)?$",)}  # as of WavCaps
SUFFIX = r"\.[A-Za-z][A-Za-z0-9]{0,4}$"
CHARACTER_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])")
MIN_CHANGES = 3  # changes of case or to a digit from which a name is not a word; YouTube ids have 3.5 on average
MAX_DENSITY = 0.5  # share of their range that numbers fill; denser ones are counters, not ids


def infer_sources(clips: Sequence[Clip]) -> list[str | None]:
    """The source of each clip: "youtube:ID@SECONDS", "youtube:ID", "freesound:NUMBER" or None.

    A name of 11 characters is a YouTube id if it looks random, or if half of all names do. A plain number is a
    Freesound id if nine tenths of the names are numbers and these do not count up.
    """
    names = [PurePath(clip.id if clip.recording is None else clip.recording.name).name for clip in clips]
    stems = [re.sub(r"\.(?!\d+(_|$))\w+$", "", name) for name in names]
    youtube = [YOUTUBE.fullmatch(stem) for stem in stems]
    all_random = 2 * sum(bool(match) and looks_random(match[1]) for match in youtube) > len(stems)
    all_numbers = are_freesound_numbers(stems)
    sources = []
    for clip, stem, match in zip(clips, stems, youtube, strict=True):
        source = clip.source
        if source is None and match and (all_random or looks_random(match[1])):
            source = f"youtube:{match[1]}" + (f"@{match[2]}" if match[2] else "")
        if source is None and (found := FREESOUND.fullmatch(stem)):
            source = f"freesound:{int(next(filter(None, found.groups())))}"
        if source is None and all_numbers and stem.isdecimal():
            source = f"freesound:{int(stem)}"
        sources.append(source)
    return sources


def find_sources(clips: Sequence[Clip]) -> list[str | None]:
    """The recording on YouTube or Freesound of each clip, as far as it is known."""
    sources = map(source_recording, infer_sources(clips))
    return [source if source and source.partition(":")[0] in SITES else None for source in sources]


def source_recording(source: str | None) -> str | None:
    """A source without the start of the clip."""
    return source and source.partition("@")[0]


def looks_random(name: str) -> bool:
    return len(CHARACTER_CHANGE.findall(name)) >= MIN_CHANGES


def are_freesound_numbers(stems: Sequence[str]) -> bool:
    """Whether names are Freesound ids: nearly all are numbers, without zero padding and with gaps."""
    numbers = [stem for stem in stems if stem.isdecimal()]
    if len(numbers) < 2 or len(numbers) < 0.9 * len(stems) or any(number.startswith("0") for number in numbers):
        return False
    values = {int(number) for number in numbers}
    return len(values) <= MAX_DENSITY * (max(values) - min(values) + 1)


def find_recordings(clips: JoinedClips, recordings: Collection[str]) -> np.ndarray:
    """Indices of the clips that are cut from given recordings, as their corpus states it or their names show.

    Args:
        recordings: `youtube:ID`, `freesound:NUMBER`.
    """
    if not recordings:
        return np.zeros(0, np.int64)
    ids: dict[str, list[bytes]] = {site: [] for site in SITES}
    for site, _, name in (recording.partition(":") for recording in recordings):
        ids[site].append(name.encode())
    values = {site: pa.array(names, pa.binary()) for site, names in ids.items()}
    stated = pa.array([f"{site}:".encode() + name for site, names in ids.items() for name in names], pa.binary())
    masks = [np.zeros(0, bool)]
    for batch in clips.batches("id", "path", "member", "source"):
        sources = pc.replace_substring_regex(batch["source"], "@.*$", "")
        mask = pc.is_in(sources, value_set=stated)
        if batch["source"].null_count:
            mask = pc.or_(mask, match_names(read_names(batch), values))
        masks.append(mask.to_numpy())
    return np.flatnonzero(np.concatenate(masks))


def list_recordings(clips: JoinedClips) -> Iterator[pa.ChunkedArray]:
    """The recordings, `youtube:ID` and `freesound:NUMBER` in bytes, that corpora state or names of clips may show.

    A name may show several, and one that it is not cut from: those of other clips are what counts.
    """
    for batch in clips.batches("id", "path", "member", "source"):
        yield pc.replace_substring_regex(batch["source"].drop_null(), "@.*$", "")
        if batch["source"].null_count:
            names = read_names(batch.filter(batch["source"].is_null()))
            for texts, site, pattern in list_patterns(names):
                found = pc.struct_field(pc.extract_regex(texts, pattern), "id").drop_null()
                yield pc.binary_join_element_wise(f"{site}:".encode(), found, b"")


def read_names(batch: pa.Table) -> pa.ChunkedArray:
    """The path, name in a tar, or id of each clip."""
    return pc.coalesce(batch["path"], pc.struct_field(batch["member"], "name"), batch["id"])


def list_patterns(names: pa.ChunkedArray) -> list[tuple[pa.ChunkedArray, str, str]]:
    """Stems or names, the site, and a pattern of its ids in them."""
    stems = pc.replace_substring_regex(pc.replace_substring_regex(names, "^.*/", ""), SUFFIX, "")
    tested = [(stems, site, pattern) for site, patterns in STEMS.items() for pattern in patterns]
    return tested + [(names, site, pattern) for site, patterns in PATHS.items() for pattern in patterns]


def match_names(names: pa.ChunkedArray, values: Mapping[str, pa.Array]) -> pa.ChunkedArray:
    """Whether a name of a file shows one of the recordings, by site."""
    masks = [
        pc.is_in(pc.struct_field(pc.extract_regex(texts, pattern), "id"), value_set=values[site])
        for texts, site, pattern in list_patterns(names)
        if len(values[site])
    ]
    return functools.reduce(pc.or_, masks)

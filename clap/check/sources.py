"""The recording on YouTube or Freesound that a clip was cut from, given by its corpus or inferred from its name."""

import re
from collections.abc import Sequence
from pathlib import PurePath

from clap.corpus import Clip

YOUTUBE = re.compile(r"Y?([\w-]{11})(?:[_@](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII)
FREESOUND = re.compile(
    r"(\d+)__.+"  # file names of Freesound downloads
    r"|freesound[_-]?(\d+)"
    r"|[1-5]-(\d+)-[A-Z]-\d+"  # ESC-50
    r"|(\d+)-\d+-\d+-\d+",  # UrbanSound8K
    re.IGNORECASE,
)
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

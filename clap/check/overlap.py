"""Overlap of two sets of clips: recordings on YouTube and Freesound, equal samples, equal and near captions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clap.check.findings import Entry, audio_digest, group_by_key, have_same_label
from clap.check.limits import Limits
from clap.check.near_captions import CaptionIndex
from clap.dataset.sources import source_recording


@dataclass(frozen=True)
class Match:
    """A clip, and the clips of the other set that it overlaps with."""

    kind: str
    entry: Entry
    others: Sequence[Entry]
    detail: str


def count_comparable(entries: Sequence[Entry], limits: Limits) -> dict[str, int]:
    """{kind: clips that can be compared}: of a known recording; decoded and not silent; with a word in a caption."""
    with_words = sum(any(entry.texts) for entry in entries)
    return {
        "recording": sum(entry.source is not None for entry in entries),
        "audio": sum(audio_digest(entry, limits) is not None for entry in entries),
        "caption": with_words,
        "near-caption": with_words,
    }


def find_overlap(entries: Sequence[Entry], others: Sequence[Entry], limits: Limits) -> list[Match]:
    """Overlap of each of `entries` with `others`, at most one match per kind and clip.

    Captions of clips with the same label do not count. A near caption counts only if no caption of the clip is equal.
    """
    matches = [
        *match_keys("recording", entries, others, lambda entry: [source_recording(entry.source)], describe_source),
        *match_keys(
            "audio", entries, others, lambda entry: [audio_digest(entry, limits)], lambda *_: "the same samples"
        ),
        *match_keys("caption", entries, others, lambda entry: entry.texts, lambda key, *_: key, by_label=True),
    ]
    equal = {id(match.entry) for match in matches if match.kind == "caption"}
    rest = [entry for entry in entries if id(entry) not in equal]
    return matches + match_near_captions(rest, others, limits.similarity)


def match_keys(
    kind: str,
    entries: Sequence[Entry],
    others: Sequence[Entry],
    keys_of: Callable[[Entry], Iterable[str | None]],
    describe: Callable[[str, Entry, Sequence[Entry]], str],
    *,
    by_label: bool = False,
) -> list[Match]:
    """Clips that have a key in common with the other set.

    Args:
        by_label: whether to ignore matches between clips with the same label.
    """
    groups = group_by_key(others, keys_of)
    labels = {key: {other.clip.label for other in found} for key, found in groups.items()}
    matches = []
    for entry in entries:
        own = None if entry.clip.label is None or not by_label else {entry.clip.label}
        keys = [key for key in dict.fromkeys(keys_of(entry)) if key in groups and labels[key] != own]
        if keys:
            found = groups[keys[0]] if len(keys) == 1 else merge_unique(groups[key] for key in keys)
            matches.append(Match(kind, entry, found, describe(keys[0], entry, found)))
    return matches


def match_near_captions(entries: Sequence[Entry], others: Sequence[Entry], similarity: float) -> list[Match]:
    """Clips with captions of nearly the same words; each distinct caption is searched once."""
    owners = group_by_key(others, lambda entry: dict.fromkeys(entry.texts))
    index = CaptionIndex(owners, similarity)
    texts = dict.fromkeys(text for entry in entries for text in entry.texts if text)
    near = {text: [(other, how) for other, how in index.search(text) if other != text] for text in texts}
    matches = []
    for entry in entries:
        found = [(how, text, other) for text in dict.fromkeys(entry.texts) for other, how in near.get(text, ())]
        found.sort(key=lambda item: -item[0])
        others = [
            other for other in merge_unique(owners[name] for *_, name in found) if not have_same_label([entry, other])
        ]
        if others:
            how, text, other = next(item for item in found if item[2] in others[0].texts)
            matches.append(Match("near-caption", entry, others, f"{how:.2f}: {text} | {other}"))
    return matches


def describe_source(key: str, entry: Entry, others: Sequence[Entry]) -> str:
    """The recording, and the start of both clips in seconds if their ids contain it."""
    start, other = entry.source.partition("@")[2], others[0].source.partition("@")[2]
    return key + (f" at {start} s and at {other} s" if start and other else "")


def merge_unique(groups: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Entries of all groups without duplicates."""
    return list({id(entry): entry for found in groups for entry in found}.values())

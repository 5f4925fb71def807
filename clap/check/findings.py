"""Faults in the clips of a split, found from its index and from measures of its recordings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from clap.check.limits import Limits
from clap.check.measure import Measures
from clap.check.near_captions import normalize_caption
from clap.corpus import Clip


@dataclass
class Entry:
    """A clip with its split, the recording it was cut from, and its measures.

    Attributes:
        audio: measures; None if audio was not checked or cannot be decoded.
        problem: why the audio cannot be decoded.
        texts: normalized captions.
    """

    dataset: str
    split: str
    clip: Clip
    source: str | None = None
    audio: Measures | None = None
    problem: str | None = None
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.texts = tuple(normalize_caption(caption) for caption in self.clip.captions)

    @property
    def place(self) -> str:
        return f"{self.dataset} {self.split}: {self.clip.id}"


@dataclass(frozen=True)
class Finding:
    """One fault of one clip; `other` is the place of a second clip that is involved."""

    kind: str
    dataset: str
    split: str
    clip: str
    detail: str
    other: str = ""


def find_faults(entries: Sequence[Entry], limits: Limits) -> Iterator[Finding]:
    """Faults within one split, without comparison to other splits."""
    for entry in entries:
        for kind, detail in [*audio_faults(entry, limits), *caption_faults(entry)]:
            yield Finding(kind, entry.dataset, entry.split, entry.clip.id, detail)
    yield from find_duplicates(entries, limits)
    yield from find_shared(entries)


def audio_faults(entry: Entry, limits: Limits) -> Iterator[tuple[str, str]]:
    if entry.problem is not None:
        yield ("missing", str(entry.clip.path)) if entry.problem == "missing" else ("unreadable", entry.problem)
    if (audio := entry.audio) is None:
        return
    if audio.duration < limits.shortest:
        yield "too short", f"{audio.duration:.3g} s"
    if audio.duration > limits.longest:
        yield "too long", f"{audio.duration:.0f} s"
    if is_silent(entry, limits):
        yield "silent", f"{audio.level:.0f} dBFS"
    if audio.clipped > limits.clipping:
        yield "clipped", f"{audio.clipped:.2%} of samples"


def caption_faults(entry: Entry) -> Iterator[tuple[str, str]]:
    if not entry.texts:
        yield "no caption", ""
    for caption, text in zip(entry.clip.captions, entry.texts, strict=True):
        if not text:
            yield "empty caption", repr(caption)
    for text, count in Counter(filter(None, entry.texts)).items():
        if count > 1:
            yield "repeated caption", f"{count} times: {text}"


def is_silent(entry: Entry, limits: Limits) -> bool:
    return entry.audio is not None and entry.audio.level < limits.silence


def audio_digest(entry: Entry, limits: Limits) -> str | None:
    """Key of recordings with equal samples; None for silent ones, which are not duplicates of each other."""
    return None if entry.audio is None or is_silent(entry, limits) else entry.audio.digest


def find_duplicates(entries: Sequence[Entry], limits: Limits) -> Iterator[Finding]:
    for first, *others in group_by_key(entries, lambda entry: [audio_digest(entry, limits)]).values():
        for entry in others:
            yield Finding("duplicate audio", entry.dataset, entry.split, entry.clip.id, "the same samples", first.place)


def find_shared(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Captions that several clips share, one finding each, except captions of clips with the same label."""
    for text, clips in group_by_key(entries, lambda entry: dict.fromkeys(entry.texts)).items():
        if len(clips) > 1 and not have_same_label(clips):
            first, second = clips[:2]
            detail = f"{len(clips)} clips: {text}"
            yield Finding("shared caption", first.dataset, first.split, first.clip.id, detail, second.place)


def have_same_label(entries: Sequence[Entry]) -> bool:
    """Whether all clips have the same label."""
    return entries[0].clip.label is not None and len({entry.clip.label for entry in entries}) == 1


def group_by_key(entries: Iterable[Entry], keys_of: Callable[[Entry], Iterable[str | None]]) -> dict[str, list[Entry]]:
    """Group entries by each of their keys; None and "" are ignored."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        for key in keys_of(entry):
            if key:
                groups[key].append(entry)
    return groups

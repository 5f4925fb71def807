"""The report of a check, as Markdown and CSV: statistics of a corpus, its faults and the overlap of its splits."""

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from clap.atomic import write_atomic
from clap.check.findings import Entry, Finding
from clap.check.limits import FAULTS, FILE_FAULTS, OVERLAPS, SAMPLE_FAULTS, Limits
from clap.check.near_captions import find_words
from clap.check.overlap import Match
from clap.corpus import Lost
from clap.text_table import shorten, to_csv, to_markdown


@dataclass
class CheckedSplit:
    """The checked clips of a split, those that it lost, and the number of listed and, if known, published clips."""

    dataset: str
    split: str
    entries: list[Entry]
    listed: int
    published: int | None = None
    lost: Sequence[Lost] = ()

    @property
    def durations(self) -> list[float]:
        """Seconds of each recording that could be decoded."""
        return [entry.audio.duration for entry in self.entries if entry.audio]

    @property
    def lengths(self) -> list[int]:
        """Number of words of each caption."""
        return [len(text.split()) for entry in self.entries for text in entry.texts]

    def is_checked(self, kind: str) -> bool:
        """Whether this kind of fault was looked for in at least one clip."""
        if kind == "count":
            return self.published is not None
        if kind == "lost":
            return True
        if kind in SAMPLE_FAULTS:
            return bool(self.durations)
        if kind in FILE_FAULTS:
            return any(entry.audio or entry.problem is not None for entry in self.entries)
        return bool(self.entries)


@dataclass
class Overlap:
    """Overlap of the clips of one split with those of another; `comparable` is {kind: clips} of each."""

    split: CheckedSplit
    other: CheckedSplit
    matches: list[Match]
    comparable: tuple[Mapping[str, int], Mapping[str, int]]

    def findings(self) -> Iterator[Finding]:
        for match in self.matches:
            entry, others = match.entry, match.others
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            kind, other = f"overlap: {match.kind}", others[0].place + more
            yield Finding(kind, entry.dataset, entry.split, entry.clip.id, match.detail, other)

    def is_compared(self, kind: str) -> bool:
        """Whether a clip of each split can be compared."""
        return all(counts[kind] for counts in self.comparable)

    def count_clips(self, kind: str) -> str:
        """Number of clips with a match of this kind, and in brackets that of the matched clips of the other split.

        The shares of the clips of both splits that could be compared follow unless both are 1; "-" if one is 0.
        """
        if not self.is_compared(kind):
            return "-"
        matches = [match for match in self.matches if match.kind == kind]
        text = f"{len(matches)} ({len({id(other) for m in matches for other in m.others})})" if matches else "0"
        own, other = (counts[kind] for counts in self.comparable)
        totals = len(self.split.entries), len(self.other.entries)
        if (own, other) == totals:
            return text
        return f"{text} [{format_share(own, totals[0])}, {format_share(other, totals[1])}]"


@dataclass
class Report:
    """All results of the check of a corpus."""

    name: str
    limits: Limits
    with_audio: bool
    splits: list[CheckedSplit]
    findings: list[Finding] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)

    @property
    def unchecked(self) -> list[str]:
        """Kinds of faults and overlap that were looked for in no split; "count" only applies to published corpora."""
        faults = [
            kind for kind in FAULTS if kind != "count" and not any(split.is_checked(kind) for split in self.splits)
        ]
        kinds = [kind for kind in OVERLAPS if not any(overlap.is_compared(kind) for overlap in self.overlaps)]
        return faults + [f"overlap: {kind}" for kind in kinds]

    def find_uncompared(self, kinds: Sequence[str]) -> list[str]:
        """The kinds of overlap for which training could not be compared with any evaluation split."""
        overlaps = [overlap for overlap in self.overlaps if overlap.split.split == "train"]
        return [kind for kind in kinds if not any(overlap.is_compared(kind) for overlap in overlaps)]

    def to_markdown(self) -> str:
        parts = [
            f"# Check of {self.name}",
            to_markdown([["", *(split.split for split in self.splits)], *self.statistics_rows()]).rstrip(),
        ]
        parts += ["## Findings", self.faults_table(), "## Overlap", self.overlap_table()]
        return "\n\n".join(parts) + "\n"

    def statistics_rows(self) -> Iterator[list[str]]:
        """Rows of the table of statistics per split."""
        rows: dict[str, Callable[[CheckedSplit], str]] = {"clips": lambda split: str(len(split.entries))}
        if any(split.listed != len(split.entries) for split in self.splits):  # dataset.exclude or dataset.max_clips
            rows["clips listed"] = lambda split: str(split.listed)
        if any(split.published is not None for split in self.splits):
            rows["clips as published"] = lambda split: "-" if split.published is None else str(split.published)
        if self.with_audio:
            rows |= {
                "decoded": lambda split: str(len(split.durations)),
                "hours": lambda split: f"{sum(split.durations) / 3600:.2f}" if split.durations else "-",
                "seconds per clip": lambda split: format_range(split.durations, digits=1),
                "rates, Hz": lambda split: format_counts(e.audio.rate for e in split.entries if e.audio),
                "channels": lambda split: format_counts(e.audio.channels for e in split.entries if e.audio),
                "loudest 0.1 s, dBFS": lambda split: format_range(
                    [e.audio.level for e in split.entries if e.audio], digits=0
                ),
            }
        rows |= {
            "captions": lambda split: str(len(split.lengths)),
            "captions per clip": lambda split: format_counts(len(entry.texts) for entry in split.entries),
            "distinct captions": lambda split: str(len({text for e in split.entries for text in e.texts})),
            "words per caption": lambda split: format_range(split.lengths, digits=0),
            "distinct words": lambda split: str(
                len({w for e in split.entries for c in e.clip.captions for w in find_words(c)})
            ),
        }
        for label, value in rows.items():
            yield [label, *(value(split) if split.entries else "-" for split in self.splits)]

    def faults_table(self) -> str:
        """Table of the kinds of faults that were found, with an example each."""
        first = {finding.kind: finding for finding in reversed(self.findings)}
        counts = Counter((finding.kind, finding.split) for finding in self.findings)
        kinds = [kind for kind in FAULTS if kind in first]
        rows = [
            [
                kind,
                *(str(counts[kind, split.split]) if split.is_checked(kind) else "-" for split in self.splits),
                format_example(first[kind]),
            ]
            for kind in kinds
        ]
        unchecked = [kind for kind in self.unchecked if kind in FAULTS]
        limits = ", ".join(f"--{option.name} {getattr(self.limits, option.name):g}" for option in fields(self.limits))
        header = ["", *(split.split for split in self.splits), "example"]
        return "\n".join(
            [
                to_markdown([header, *rows]) if rows else "none\n",
                *(f"- {kind}: {FAULTS[kind]}" for kind in kinds),
                *([f"- not checked: {', '.join(unchecked)}"] if unchecked else []),
                f"- limits: {limits}",
            ]
        )

    def overlap_table(self) -> str:
        """Table of the overlap of each pair of splits, of this corpus and of those in --against."""
        rows = [
            [f"{o.split.dataset} {o.split.split}", f"{o.other.dataset} {o.other.split}", *map(o.count_clips, OVERLAPS)]
            for o in self.overlaps
        ]
        if not rows:
            return "There is only one split; nothing to compare."
        kinds = [f"- {kind}: {meaning}" for kind, meaning in OVERLAPS.items()]
        notes = [
            "- 12 (3): 12 clips of the first split match 3 clips of the second",
            "- [90 %, 40 %]: shares of the clips of both splits that could be compared; without brackets, all",
            "- `-`: not compared; one of the splits has no clip with a known recording, decoded audio, or a caption",
        ]
        return "\n".join([to_markdown([["clips of", "compared with", *OVERLAPS], *rows]), *kinds, *notes])

    def write_csv(self, path: Path) -> None:
        """Write one row per finding, faults first."""
        rows = [*self.findings, *(finding for overlap in self.overlaps for finding in overlap.findings())]
        text = to_csv([[column.name for column in fields(Finding)], *map(astuple, rows)])
        write_atomic(path, text.encode(errors="backslashreplace"))

    def find_blocked_clips(self, kinds: Sequence[str]) -> dict[str, str]:
        """Training clips that overlap with an evaluation split, {name: reason}.

        A name is the id of a clip, or its absolute path if several clips have this id.

        Args:
            kinds: kinds of overlap that count.
        """
        reasons: dict[str, str] = {}
        ids = Counter(entry.clip.id for split in self.splits for entry in split.entries)
        for overlap in self.overlaps:
            for match in overlap.matches if overlap.split.split == "train" else ():
                clip = match.entry.clip
                if match.kind in kinds:
                    name = clip.id if ids[clip.id] == 1 or clip.path is None else os.path.abspath(clip.path)
                    reasons.setdefault(name, f"{match.kind} of {match.others[0].place}: {match.detail}")
        return reasons


def format_example(finding: Finding) -> str:
    text = ": ".join(part for part in (finding.clip, finding.detail) if part)
    return shorten(text, 80)


def format_share(count: int, total: int) -> str:
    """Percent, 0 % and 100 % only if exact."""
    if 0 < count < total:
        percent = 100 * count / total
        return "<1 %" if percent < 1 else ">99 %" if percent > 99 else f"{percent:.0f} %"
    return "100 %" if count else "0 %"


def format_range(values: Sequence[float], *, digits: int) -> str:
    """Smallest, median and largest value."""
    if not values:
        return "-"
    ends = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{value:.{digits}f}" for value in ends)


def format_counts(values: Iterable[int | None], most: int = 4) -> str:
    """Number of occurrences of each value, most frequent first: "44100: 18, 16000: 2"."""
    counts = Counter("?" if value is None else str(value) for value in values).most_common()
    shown = [name if len(counts) == 1 else f"{name}: {count}" for name, count in counts[:most]]
    return ", ".join(shown + [f"{len(counts) - most} more"] * (len(counts) > most)) or "-"

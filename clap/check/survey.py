"""Checks a corpus: measures every clip, finds faults and compares splits."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clap.check.findings import Entry, Finding, find_faults
from clap.check.limits import Limits
from clap.check.measure import Measures, measure_all
from clap.check.overlap import count_comparable, find_overlap
from clap.check.report import CheckedSplit, Overlap, Report
from clap.corpus import SPLITS, Clip, Corpus, Lost
from clap.dataset.clip_table import JoinedClips
from clap.dataset.dataset_settings import read_dataset_settings
from clap.dataset.held_out import select_training_clips
from clap.dataset.registry import open_corpus
from clap.dataset.sources import infer_sources


def check_corpus(own: Mapping, against: Sequence[Mapping] = (), *, limits: Limits, workers: int = 1) -> Report:
    """Check a corpus; its splits are compared with each other, and training with val and test of other corpora.

    Args:
        own, against: `dataset` nodes of composed configs; their max_clips and exclude apply.
        workers: decoding threads; 0 skips the audio.

    Raises:
        ValueError: an index or a block list is invalid. FileNotFoundError: an index is missing.
    """
    splits = open_splits(own, SPLITS, workers=workers)
    others = [split for settings in against for split in open_splits(settings, SPLITS[1:], workers=workers)]
    return make_report(splits, others, limits=limits, with_audio=workers > 0)


def make_report(
    own: Sequence[CheckedSplit], others: Sequence[CheckedSplit], *, limits: Limits, with_audio: bool
) -> Report:
    """Find faults within splits, and the overlap of each pair of own splits and of training with other corpora."""
    findings = [finding for split in own for finding in find_split_faults(split, limits)]
    pairs = [pair for pair in itertools.combinations(own, 2) if all(split.entries for split in pair)]
    pairs += [(own[0], other) for other in others]  # an empty one too: its row says that nothing was compared
    comparable = {id(split): count_comparable(split.entries, limits) for split in (*own, *others)}
    overlaps = [
        Overlap(
            *(split, other, find_overlap(split.entries, other.entries, limits)),
            comparable=(comparable[id(split)], comparable[id(other)]),
        )
        for split, other in pairs
    ]
    return Report(own[0].dataset, limits, with_audio, list(own), findings, overlaps)


def find_split_faults(split: CheckedSplit, limits: Limits) -> list[Finding]:
    faults = [Finding("lost", split.dataset, split.split, entry.name, describe_lost(entry)) for entry in split.lost]
    faults += find_faults(split.entries, limits)
    if split.published is not None and split.listed != split.published:
        detail = f"{split.listed} listed, {split.published} published"
        faults.insert(0, Finding("count", split.dataset, split.split, "", detail))
    return faults


def describe_lost(entry: Lost) -> str:
    return entry.reason if entry.count == 1 else f"{entry.reason} ({entry.count} clips)"


def open_splits(settings: Mapping, names: Sequence[str], *, workers: int) -> list[CheckedSplit]:
    """Splits of the corpus in a `dataset` config node, with every clip measured unless `workers` is 0."""
    corpus, chosen = open_corpus(settings), replace(read_dataset_settings(settings), exclude_evaluated=False)
    splits = []
    for name in names:
        listed = [JoinedClips(part.list_clips(name)) for part in corpus.parts]
        clips = select_training_clips(corpus.parts, listed, chosen) if name == "train" else listed
        owned = [(part.corpus, clip) for part, own in zip(corpus.parts, clips, strict=True) for clip in own]
        owned = owned[: settings["max_clips"]]
        split = make_split(corpus, name, owned, listed=sum(map(len, listed)), workers=workers)
        split.lost = [
            lost for part in corpus.parts for own in part.list_splits(name) for lost in part.corpus.find_lost(own)
        ]
        splits.append(split)
    return splits


def make_split(
    corpus: Corpus, name: str, owned: Sequence[tuple[Corpus, Clip]], *, listed: int, workers: int
) -> CheckedSplit:
    """A split with the sources and measures of its clips.

    Args:
        owned: each clip with the corpus that loads it, of a mixture one of its parts.
    """
    clips = [clip for _, clip in owned]
    audio: list[Measures | str | None] = [None] * len(clips)
    if workers:
        audio = measure_all(owned, workers=workers, name=f"{corpus.name} {name}")
    entries = [
        Entry(
            corpus.name,
            name,
            clip,
            source,
            audio=found if isinstance(found, Measures) else None,
            problem=found if isinstance(found, str) else None,
        )
        for clip, source, found in zip(clips, infer_sources(clips), audio, strict=True)
    ]
    return CheckedSplit(corpus.name, name, entries, listed, getattr(corpus, "counts", {}).get(name))

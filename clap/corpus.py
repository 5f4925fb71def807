"""The corpus contract: Clip, Corpus, splits. This module does not import torch."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clap.config.values import SPLITS
from clap.prompts import check_texts
from clap.waveform import LONGEST, AudioHeader, Member, load_waveform, read_header


class WaveformReader(Protocol):
    """Replaces `load_waveform` in a corpus; `WaveformCache` in clap/dataset/cache.py documents the methods."""

    def load(self, path: Path | Member, sample_rate: int, **options: Any) -> np.ndarray: ...

    def load_samples(self, path: Path | Member, sample_rate: int, **options: Any) -> tuple[np.ndarray, np.float32]: ...

    def take_hit(self) -> bool | None: ...


@dataclass(frozen=True)
class Clip:
    """One recording (or one scene that its corpus renders) and its captions.

    Args:
        id: unique in the corpus.
        path: the file of the recording; None if it is in a tar, or the corpus renders it or stores it elsewhere.
        label: the class, for zero-shot classification; None for a clip without a class or with several.
        keywords: all tags or labels.
        source: the published recording that the clip is cut from, `youtube:ID@SECONDS` or `freesound:NUMBER`, if known.
        captions_from_labels: the captions are labels in templates; clips with equal captions are then right answers of
            each other in retrieval.
        labels: all classes of a clip of a corpus whose clips may have several, for multi-label classification.
        member: the recording, if it is in a tar.

    Raises:
        ValueError: a caption, keyword or label is not a string, is blank or cannot be encoded; captions is not a tuple;
            the clip has both a path and a member.
    """

    id: str
    captions: tuple[str, ...]
    path: Path | None = None
    label: str | None = None
    keywords: tuple[str, ...] = ()
    source: str | None = None
    captions_from_labels: bool = False
    labels: tuple[str, ...] = ()
    member: Member | None = None

    @property
    def recording(self) -> Path | Member | None:
        """Where the recording is: a file, or a member of a tar; None if only its corpus can load it."""
        return self.member if self.path is None else self.path

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels, or the only one; empty for a clip without."""
        return self.labels or (() if self.label is None else (self.label,))

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise ValueError(f"clip id {self.id!r} is not a string; write it as one")
        if not isinstance(self.captions, tuple):
            raise ValueError(f'clip {self.id!r}: captions={self.captions!r} is not a tuple; write ("a dog barks",)')
        if self.path is not None and self.member is not None:
            raise ValueError(f"clip {self.id!r} has path={self.path} and member={self.member}; give one of them")
        check_texts(self.captions, "caption", clip=self.id)
        check_texts(self.keywords, "keyword", clip=self.id)
        check_texts(self.all_labels, "label", clip=self.id)


@dataclass(frozen=True)
class Lost:
    """Clips that an index should have and that cannot be used: the name of one, or of what had `count` of them."""

    name: str
    reason: str
    count: int = 1


class Corpus:
    """A named collection of clips in splits; a subclass reads its index in `clips`."""

    name: str
    title: str  # published spelling of the name
    source: str  # address of the publication
    licence: str
    citation: str
    max_duration: float = 30.0  # seconds; training reads a part of this length from a longer clip
    clip_duration: float | None = None  # seconds of every published clip; evaluation reads no more of a longer file
    longest_clip: float = LONGEST  # seconds; a clip of which more would be read is not loaded
    cache: WaveformReader | None = None
    open_shards: int | None = None  # shards whose clips training shuffles together; None: it shuffles all clips

    @property
    def counts(self) -> dict[str, int | None]:
        """Published number of clips of each split; None if it is not known."""
        return {}

    @property
    def parts(self) -> "list[Part]":
        """The mixed corpora and how they are used; for a single corpus, itself."""
        return [Part(self)]

    @property
    def loads_recordings(self) -> bool:
        """Whether the audio of a clip is its recording as it is, so that this identifies it."""
        own = type(self)
        return own.load is Corpus.load and own.load_samples is Corpus.load_samples

    def clips(self, split: str) -> Sequence[Clip]:
        """The clips of a split: train, val or test; a list, or for many clips a ClipTable."""
        raise NotImplementedError

    def find_lost(self, split: str) -> list[Lost]:
        """What the index of a split lists beside its clips and is damaged; it counts as missing clips."""
        return []

    def load(
        self, clip: Clip, *, sample_rate: int, max_duration: float | None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Mono float32 (samples,) at `sample_rate`, at most `max_duration` seconds; None: all (see `load_waveform`)."""
        load = load_waveform if self.cache is None else self.cache.load
        return load(self.locate(clip), sample_rate, max_duration=max_duration, rng=rng, longest=self.longest_clip)

    def load_samples(
        self, clip: Clip, *, sample_rate: int, max_duration: float | None, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.float32]:
        """As `load`, but int16 samples (samples,) if they come from a cache, and the scale that makes them float32."""
        if self.cache is None or clip.recording is None:
            waveform = self.load(clip, sample_rate=sample_rate, max_duration=max_duration, rng=rng)
            return waveform, np.float32(1)
        options = {"max_duration": max_duration, "rng": rng, "longest": self.longest_clip}
        return self.cache.load_samples(self.locate(clip), sample_rate, **options)

    def read_header(self, clip: Clip) -> AudioHeader | None:
        """Rate, length and size of a recording, which identify its audio in a protocol; None if they are not known.

        Raises:
            AudioError: the recording is invalid.
        """
        recording = self.locate(clip)
        return None if recording is None else read_header(recording)

    def locate(self, clip: Clip) -> Path | Member | None:
        """The recording of a clip where it can be read: a remote one is fetched.

        Raises:
            AudioError: it cannot be fetched.
        """
        return clip.recording

    def identify(self, clip: Clip) -> str | None:
        """Text that identifies the audio that `load` returns, without loading it, in all runs.

        None: the recording of the clip identifies it, if `load` is not overridden; otherwise it is not known.
        """
        return None


@dataclass(frozen=True)
class Part:
    """A corpus, and how a mixture uses it.

    Args:
        weight: draws of each clip per training epoch; 0.5: half of the clips, different ones each epoch.
        captions: caption policy in training; None: that of the dataset.
        exclude: files of clips that training skips (see `read_exclusions`), besides that of the dataset.
        splits: split -> splits of the corpus that it consists of, none for a split without a key; None: each is itself.
    """

    corpus: Corpus
    weight: float = 1.0
    captions: str | None = None
    exclude: tuple[str, ...] = ()
    splits: Mapping[str, Sequence[str]] | None = None

    def list_splits(self, split: str) -> Sequence[str]:
        """The splits of the corpus that a split consists of."""
        return [split] if self.splits is None else self.splits.get(split, [])

    def list_clips(self, split: str) -> list[Sequence[Clip]]:
        """The clips of each split of the corpus that a split consists of."""
        return [self.corpus.clips(own) for own in self.list_splits(split)]

    def clips(self, split: str) -> Sequence[Clip]:
        """The clips of a split."""
        found = self.list_clips(split)
        return found[0] if len(found) == 1 else list(itertools.chain(*found))

    def list_lost(self, split: str) -> list[Clip]:
        """A clip without a recording for each that the corpus has lost, see `Corpus.find_lost`."""
        lost = [entry for own in self.list_splits(split) for entry in self.corpus.find_lost(own)]
        return [
            Clip(entry.name if entry.count == 1 else f"{entry.name}, lost clip {number + 1}", ())
            for entry in lost
            for number in range(entry.count)
        ]

    def count_published(self, split: str) -> int | None:
        """Published number of clips of a split; None if it is not known."""
        counts = [self.corpus.counts.get(own) for own in self.list_splits(split)]
        return None if None in counts else sum(counts)


def check_split(split: str) -> None:
    """ValueError if `split` is not train, val or test."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")


def plain_name(name: str) -> str:
    """The name of a corpus as in its yaml, module and folder: "ESC-50" becomes esc50."""
    return name.lower().replace("-", "")


def find_folder(root: str | Path, name: str) -> Path | None:
    """The subfolder of `root` that is named after a corpus, such as `clotho` or `Clotho`; None if missing."""
    folders = sorted(Path(root).iterdir()) if Path(root).is_dir() else []
    return next((folder for folder in folders if plain_name(folder.name) == plain_name(name)), None)

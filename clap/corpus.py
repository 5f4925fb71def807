"""The corpus contract: Clip, Corpus, splits and audio suffixes. torch is not imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clap.config.values import SPLITS

AUDIO_SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")


class WaveformReader(Protocol):
    """Reads recordings in place of `load_waveform`, as the cache of `dataset.cache` does; see there."""

    def load(self, path: Path, sample_rate: int, **options: Any) -> np.ndarray: ...

    def load_samples(self, path: Path, sample_rate: int, **options: Any) -> tuple[np.ndarray, np.float32]: ...


@dataclass(frozen=True)
class Clip:
    """One recording (or one scene that its corpus renders) and what people say of it.

    Args:
        label: the one class of the clip, for zero-shot classification; None where it has none or several.
        keywords: tags or labels, as many as there are.
        source: what it was cut from, `youtube:ID@SECONDS` or `freesound:NUMBER`, where its corpus knows.
    """

    id: str
    captions: tuple[str, ...]
    path: Path | None = None
    label: str | None = None
    keywords: tuple[str, ...] = ()
    source: str | None = None


class Corpus:
    """A named collection of clips in splits; a child class reads its index in `clips`."""

    name: str
    title: str  # as its authors write it
    source: str  # where it is published
    licence: str
    citation: str
    max_duration: float = 30.0  # seconds; in training only this much of a longer clip is read
    cache: WaveformReader | None = None

    @property
    def counts(self) -> dict[str, int | None]:
        """Published number of clips of each split; None where it is not known."""
        return {}

    @property
    def parts(self) -> "list[tuple[Corpus, float]]":
        """The corpora that this one mixes, with their weights in training."""
        return [(self, 1.0)]

    def clips(self, split: str) -> list[Clip]:
        raise NotImplementedError

    def load(
        self, clip: Clip, *, sample_rate: int, max_duration: float | None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Mono float32 (samples,) at `sample_rate`, at most `max_duration` seconds, or all (see `load_waveform`)."""
        from clap.audio import load_waveform  # torch: an index is read, and its errors shown, without it

        load = load_waveform if self.cache is None else self.cache.load
        return load(clip.path, sample_rate, max_duration=max_duration, rng=rng)

    def load_samples(
        self, clip: Clip, *, sample_rate: int, max_duration: float | None, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.float32]:
        """As `load`, but from a cache still in 16 bits, (samples,) int16, and what a step of them is worth."""
        if self.cache is None or clip.path is None:
            waveform = self.load(clip, sample_rate=sample_rate, max_duration=max_duration, rng=rng)
            return waveform, np.float32(1)
        return self.cache.load_samples(clip.path, sample_rate, max_duration=max_duration, rng=rng)


def check_split(split: str) -> None:
    """Refuse a name that is not a split's.

    Raises:
        ValueError: it is none of train, val and test.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")


def plain_name(name: str) -> str:
    """The name of a corpus as its yaml, its module and its folder bear it: "ESC-50" is esc50."""
    return name.lower().replace("-", "")


def find_folder(root: str | Path, name: str) -> Path | None:
    """The folder of a corpus in one that holds several, such as `clotho` or `Clotho`."""
    folders = sorted(Path(root).iterdir()) if Path(root).is_dir() else []
    return next((folder for folder in folders if plain_name(folder.name) == plain_name(name)), None)

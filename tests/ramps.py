"""Files whose samples count up, so that a waveform shows which part was read."""

from pathlib import Path

import numpy as np
import soundfile

from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import SETTINGS_KEYS, DatasetSettings


class Ramps(Corpus):
    def __init__(self, clips: list[Clip], name: str = "ramps", *, max_duration: float = 30.0) -> None:
        self.listed, self.name, self.max_duration = clips, name, max_duration

    def clips(self, split: str) -> list[Clip]:
        return self.listed if split != "val" else []


def write_ramps(folder: Path) -> list[Clip]:
    """Ten files of two seconds at 1 kHz with three captions each."""
    clips = []
    for i in range(10):
        path = folder / f"{i}.wav"
        soundfile.write(path, np.arange(2000) / 2000, 1000, subtype="FLOAT")
        clips.append(Clip(str(i), tuple(f"{word} {i}" for word in ("one", "two", "three")), path))
    return clips


def make_dataset(clips: list[Clip], kind: str = "train", **options) -> ClapDataset:
    settings = DatasetSettings(**{key: options.pop(key) for key in SETTINGS_KEYS if key in options})
    return ClapDataset(Ramps(clips), kind, settings=settings, **{"sample_rate": 1000, "window": 0.5} | options)

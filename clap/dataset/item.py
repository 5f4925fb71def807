"""Item: a clip as a worker loads it, before a batch is made of several."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # imports torch
    from clap.dataset.frozen_audio import Entry


@dataclass
class Item:
    """One clip as a worker loads it.

    Args:
        index: of the clip in the dataset.
        samples: (samples,) float32, or int16 from a cache, which Collate converts without an extra copy.
        group: equal for clips with the same captions.
        problem: the error if the clip cannot be loaded; `samples` is None then.
        scale: factor that converts `samples` to [-1, 1].
        seed: of the random numbers of this clip in this epoch; None in evaluation.
        is_hit: whether the samples were found in a cache; None without one.
        entry: in the cache of a frozen audio encoder, if there is one; `samples` is empty if its features are known.
    """

    index: int
    samples: np.ndarray | None
    caption: str
    group: int
    problem: str | None = None
    scale: np.float32 = np.float32(1)
    seed: tuple[int, ...] | None = None
    is_hit: bool | None = None
    entry: "Entry | None" = None

    @property
    def length(self) -> int:
        """Samples of the clip."""
        return len(self.samples) if self.entry is None else self.entry.length

    @property
    def waveform(self) -> np.ndarray | None:
        """Float32 (samples,)."""
        return None if self.samples is None else self.samples * self.scale

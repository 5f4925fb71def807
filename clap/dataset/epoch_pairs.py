"""The (clip, caption) pairs that training epochs draw from."""

import numpy as np


class EpochPairs:
    """The pairs of one corpus, each `weight` times per epoch; for a fractional weight, the extra pairs vary by epoch.

    Args:
        clips: (pairs,) index of a clip.
        numbers: (pairs,) number of its caption; None: a random one each time.
    """

    def __init__(self, clips: np.ndarray, numbers: np.ndarray | None, weight: float, *, seed: tuple[int, int]) -> None:
        self.clips, self.numbers, self.weight, self.seed = clips, numbers, weight, seed
        if weight != 1:  # neighbours in an index may be similar
            order = np.random.default_rng(seed).permutation(len(clips))
            self.clips, self.numbers = clips[order], None if numbers is None else numbers[order]

    def __len__(self) -> int:
        return round(self.weight * len(self.clips))

    def locate(self, position: int, epoch: int) -> tuple[int, int | None]:
        """Index of the clip and number of its caption at a position of an epoch."""
        place = (self.find_first(epoch) + position) % len(self.clips)
        return int(self.clips[place]), None if self.numbers is None else int(self.numbers[place])

    def find_first(self, epoch: int) -> int:
        """Number of the pair at the first position of an epoch."""
        return 0 if self.weight == 1 else int(np.random.default_rng([*self.seed, epoch]).integers(len(self.clips)))

    def list_clips(self, epoch: int) -> np.ndarray:
        """(positions,) index of the clip at each position of an epoch."""
        return self.clips[(self.find_first(epoch) + np.arange(len(self))) % max(1, len(self.clips))]


def pair_captions(clips: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pair for every caption: clips (pairs,), and numbers of captions (pairs,).

    Args:
        clips: (clips,) indices.
        counts: (clips,) captions of each.
    """
    starts = np.cumsum(counts) - counts
    return np.repeat(clips, counts), np.arange(counts.sum()) - np.repeat(starts, counts)


def number_groups(keys: np.ndarray) -> np.ndarray:
    """Numbers (clips,), equal for equal keys (clips,), in the order of their first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[inverse]

"""Confidence interval of a proportion."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri


@dataclass(frozen=True)
class Interval:
    """Confidence interval in the units of the score."""

    low: float
    high: float

    def clip(self, low: float, high: float) -> "Interval":
        """The part of the interval between two bounds, such as those of a proportion."""
        return Interval(max(low, self.low), min(high, self.high))


def wilson_interval(proportion: float, count: float, *, level: float = 0.95) -> Interval:
    """Interval of a proportion of `count` independent trials (Wilson 1927); wider than zero, even at 0 and 1."""
    check_level(level)
    if not 0 <= proportion <= 1:
        raise ValueError(f"proportion={proportion}; give a number from 0 to 1, not percent")
    if not (np.isfinite(count) and count > 0):
        raise ValueError(f"count={count}; give a finite number of trials above 0")
    z2 = ndtri((1 + level) / 2) ** 2
    centre = (proportion + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (proportion * (1 - proportion) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(float(min(low, proportion)), float(max(high, proportion)))  # rounding must not exclude 0 or 1


def check_level(level: float) -> None:
    """ValueError if a confidence level is not between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}; give a number between 0 and 1, such as 0.95")

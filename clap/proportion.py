"""Confidence intervals of a single run: of a proportion, and of a mean over clips."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

MIN_HITS = 10  # the bootstrap covers 60 to 90 % instead of 95 % below three hits, 93 to 96 % at ten


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


def clip_interval(
    totals: ArrayLike, counts: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Interval of the score of one run over the choice of clips; it does not include the variance between seeds.

    Percentile bootstrap of sum(totals) / sum(counts) (Efron & Tibshirani 1993, chapter 13). A clip is drawn with all
    its queries, since they are not independent (clustering: Miller 2024, "Adding Error Bars to Evals"). Binary scores
    with fewer than ten hits or ten misses use Wilson's interval. Its number of trials is the effective number of clips
    if all queries of a clip agree, sum(counts)^2 / sum(counts^2): the number of clips, or less if counts differ. That
    is conservative if they do not agree: it covers 100 %, not 95 %, with five independent captions per clip.

    Args:
        totals: (clips,) sum of the scores over the queries of a clip.
        counts: (clips,) number of queries of a clip, at least one.
        draws: number of bootstrap samples.
        seed: of the random generator; equal seeds give equal intervals.
    """
    check_level(level)
    totals, counts = as_finite(totals, "totals"), as_finite(counts, "counts")
    if totals.ndim != 1 or len(totals) < 2:
        raise ValueError(f"totals has shape {totals.shape}; give (clips,) with at least two clips")
    if draws < 1:
        raise ValueError(f"draws={draws}; give at least 1, better 1000 or more")
    share = weigh_clips(counts, len(totals))
    hits, count = totals.round(), 1 / (share**2).sum()
    if np.allclose(totals, hits, rtol=0, atol=1e-6) and np.all((hits >= 0) & (hits <= counts)):
        proportion = hits.sum() / counts.sum()
        if count * min(proportion, 1 - proportion) < MIN_HITS:
            return wilson_interval(proportion, count, level=level)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(len(totals), size=len(totals)) for _ in range(draws))  # one at a time, for memory
    samples = [totals[clips].sum() / counts[clips].sum() for clips in drawn]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def check_level(level: float) -> None:
    """ValueError if a confidence level is not between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}; give a number between 0 and 1, such as 0.95")


def weigh_clips(counts: ArrayLike | None, num_clips: int) -> np.ndarray:
    """Weights (clips,) with sum 1."""
    counts = np.ones(num_clips) if counts is None else as_finite(counts, "counts")
    if counts.shape != (num_clips,):
        raise ValueError(f"counts has shape {counts.shape}, the scores have {num_clips} clips; give ({num_clips},)")
    if counts.min() <= 0:
        raise ValueError(f"counts[{counts.argmin()}] is {counts.min():g}; remove clips without queries")
    return counts / counts.sum()


def as_finite(values: ArrayLike, name: str) -> np.ndarray:
    """Values as float64; ValueError if one is not finite."""
    values = np.asarray(values, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        index = ", ".join(map(str, bad[0]))
        raise ValueError(f"{name}[{index}] is {values[tuple(bad[0])]} ({len(bad)} not finite); give finite numbers")
    return values

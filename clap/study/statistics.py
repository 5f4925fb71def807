"""Confidence intervals and tests: intervals within a run, intervals and tests between configurations.

Within a run, `clip_interval` of clap/proportion.py estimates how much the score varies with the clips, but not with the
training run. Between configurations the unit is the seed: `seed_interval` and `compare` use Student's t over training
runs, widened by the variance between clips, and return no interval below three seeds. In a cross-validation with fewer
seeds the unit is the fold: `fold_interval` and `compare_folds` use Student's t corrected for training sets that
overlap. `holm` corrects the tests of one table. Coverage and false positives are measured in
experiments/benchmarks/calibration.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from clap.proportion import Interval, as_finite, check_level, weigh_clips

MIN_SEEDS = 3  # two seeds have one degree of freedom, where t is 12.7
MIN_FOLDS = 3
ROUNDING = 1e-12  # a standard error below this fraction of the largest score is rounding error


@dataclass(frozen=True)
class Comparison:
    """Difference of a configuration from the baseline, in the units of the score.

    Attributes:
        interval: of the difference; None if the noise cannot be estimated.
        p_value: two-sided, before Holm's correction; None if the interval is None.
    """

    difference: float
    interval: Interval | None
    p_value: float | None


def seed_interval(scores: ArrayLike, counts: ArrayLike | None = None, *, level: float = 0.95) -> Interval | None:
    """Interval of the score of a configuration over training runs and clips, around the mean over seeds.

    See `student_t` for the formula and its calibration. Scores (seeds,) have no clip term: the interval then holds for
    these clips only.

    Args:
        scores: (seeds, clips) mean score over the queries of a clip, one row per training run on the same clips; or
            (seeds,), one number per run, for a metric without per-clip values.
        counts: (clips,) number of queries, the weight of each clip (default: equal weights).

    Returns:
        None below three seeds, and if the scores do not vary, so that the noise cannot be estimated.
    """
    scores, weights = _check_scores(as_finite(scores, "scores"), counts, "scores")
    return _over_seeds(scores, weights, level).interval


def compare(
    baseline: ArrayLike, other: ArrayLike, counts: ArrayLike | None = None, *, level: float = 0.95
) -> Comparison:
    """Paired comparison of two configurations: Student's t on other - baseline, seed by seed and clip by clip.

    See `student_t` for the formula and its calibration; `holm` corrects the p values of a table. Scores (seeds,) have
    no clip term: the result then holds for these clips only.

    Args:
        baseline: (seeds, clips) or (seeds,), as in `seed_interval`.
        other: the same shape, with seeds and clips in the same order.
        counts: (clips,) number of queries, the weight of each clip (default: equal weights).

    Returns:
        No interval and p value below three seeds, and if the difference is equal for all seeds and clips.
    """
    baseline, other = as_finite(baseline, "baseline"), as_finite(other, "other")
    if baseline.shape != other.shape:
        raise ValueError(
            f"baseline {baseline.shape} and other {other.shape} differ in shape; give the same seeds and clips in the "
            "same order, as (seeds, clips) or (seeds,)"
        )
    differences, weights = _check_scores(other - baseline, counts, "other - baseline")
    return _over_seeds(differences, weights, level)


def fold_interval(scores: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """Interval of the score of a configuration in cross-validation, around the mean over folds.

    See `corrected_t` for the formula and what it assumes.

    Args:
        scores: (folds,) score on each fold, each clip being in one fold.

    Returns:
        None below three folds, and if the scores do not vary.
    """
    return _over_folds(_check_folds(scores, "scores"), level).interval


def compare_folds(baseline: ArrayLike, other: ArrayLike, *, level: float = 0.95) -> Comparison:
    """Comparison of two configurations in cross-validation, paired by fold: `corrected_t` on other - baseline.

    Args:
        baseline, other: (folds,) score on each fold, in the same order.

    Returns:
        No interval and p value below three folds, and if the difference is equal on all folds.
    """
    baseline, other = _check_folds(baseline, "baseline"), _check_folds(other, "other")
    if baseline.shape != other.shape:
        raise ValueError(f"baseline {baseline.shape} and other {other.shape} differ in shape; give the same folds")
    return _over_folds(other - baseline, level)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p values of one table to control the family-wise error rate (Holm 1979).

    None stays None and is not counted as a test.
    """
    for row, p_value in enumerate(p_values):
        if p_value is not None and not 0 <= p_value <= 1:
            raise ValueError(f"p_values[{row}] is {p_value}; give numbers from 0 to 1, or None for no test")
    tested = sorted((p_value, row) for row, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, row) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_value))
        adjusted[row] = largest
    return adjusted


def student_t(scores: np.ndarray, weights: np.ndarray, *, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student's t (1908) over seeds with the clip variance added, used by `seed_interval` and `compare`.

        error^2 = var(means of seeds) / seeds  +  clips / (clips - 1) * sum_c weight_c^2 (mean of clip c - mean)^2

    with seeds - 1 degrees of freedom; at equal weights the second term is var(means of clips) / clips. It is
    conservative: the second term repeats a part of the run-to-run noise in the first (subtracting it changes little),
    and t is wider than the many degrees of freedom of the clips require. A 95 % interval covers 96 to 99 % if the
    variance between seeds is larger, 98 to 100 % if that between clips is. Satterthwaite's degrees of freedom would
    give 7 % false positives instead of 5 %.

    Args:
        scores: (..., seeds, clips), with leading batch axes; a single clip has no clip term.
        weights: (clips,) with sum 1.

    Returns:
        mean, half width of the interval and two-sided p value against a mean of 0, each (...); the last two are nan
        if the scores do not vary.
    """
    num_seeds, num_clips = scores.shape[-2:]
    seed_means = scores @ weights  # (..., seeds)
    mean = seed_means.mean(-1)  # (...)
    variance = seed_means.var(-1, ddof=1) / num_seeds
    if num_clips > 1:
        deviations = weights * (scores.mean(-2) - mean[..., None])  # (..., clips)
        variance = variance + num_clips / (num_clips - 1) * (deviations**2).sum(-1)
    error = np.sqrt(variance)
    error = np.where(error > ROUNDING * np.abs(scores).max((-2, -1)), error, np.nan)
    half = stdtrit(num_seeds - 1, (1 + level) / 2) * error
    return mean, half, 2 * stdtr(num_seeds - 1, -np.abs(mean) / error)


def corrected_t(scores: np.ndarray, *, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student's t over folds with the variance of Nadeau & Bengio (2003), used by `fold_interval` and `compare_folds`.

        error^2 = var(scores of folds) * (1 / folds + 1 / (folds - 1))

    with folds - 1 degrees of freedom. 1 / (folds - 1) is their ratio of test to training clips, which stands for the
    correlation between folds whose training sets overlap (their section 5): var / folds alone is too small. It assumes
    folds of similar size and difficulty. A 95 % interval covers 97 to 99 % if the choice of training clips matters
    little, and too little if it moves the score by more than two fifths of the noise of a fold: folds do not show that.

    Args:
        scores: (..., folds), with leading batch axes.

    Returns:
        mean, half width of the interval and two-sided p value against a mean of 0, each (...); the last two are nan
        if the scores do not vary.
    """
    folds = scores.shape[-1]
    mean = scores.mean(-1)
    error = np.sqrt(scores.var(-1, ddof=1) * (1 / folds + 1 / (folds - 1)))
    error = np.where(error > ROUNDING * np.abs(scores).max(-1), error, np.nan)
    half = stdtrit(folds - 1, (1 + level) / 2) * error
    return mean, half, 2 * stdtr(folds - 1, -np.abs(mean) / error)


def _over_folds(scores: np.ndarray, level: float) -> Comparison:
    """Mean of (folds,) against 0; no interval and p value if the noise cannot be estimated."""
    check_level(level)
    if len(scores) < MIN_FOLDS:
        return Comparison(float(scores.mean()), None, None)
    return _make_comparison(*corrected_t(scores, level=level))


def _make_comparison(mean: np.ndarray | float, half: np.ndarray, p_value: np.ndarray) -> Comparison:
    if np.isnan(half):
        return Comparison(float(mean), None, None)
    return Comparison(float(mean), Interval(float(mean - half), float(mean + half)), float(p_value))


def _check_folds(scores: ArrayLike, name: str) -> np.ndarray:
    scores = as_finite(scores, name)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"{name} has shape {scores.shape}; give (folds,), one number for each fold")
    return scores


def _over_seeds(scores: np.ndarray, weights: np.ndarray, level: float) -> Comparison:
    """Mean of (seeds, clips) against 0; no interval and p value if the noise cannot be estimated."""
    check_level(level)
    mean = float((scores @ weights).mean())
    if len(scores) < MIN_SEEDS:
        return Comparison(mean, None, None)
    return _make_comparison(mean, *student_t(scores, weights, level=level)[1:])


def _check_scores(scores: np.ndarray, counts: ArrayLike | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (seeds, clips), with one clip for (seeds,), and the weights (clips,) of the clips, with sum 1."""
    if scores.ndim not in (1, 2) or not scores.size or scores.ndim == 2 and scores.shape[1] == 1:
        raise ValueError(
            f"{name} has shape {scores.shape}; give (seeds, clips) with at least two clips, or (seeds,) for a metric "
            "without per-clip values"
        )
    if scores.ndim == 2:
        return scores, weigh_clips(counts, scores.shape[1])
    if counts is not None:
        raise ValueError(
            f"{name} has shape {scores.shape}, one number per seed; do not give counts, which weight clips"
        )
    return scores[:, None], np.ones(1)

"""Intervals and tests against published values, scipy and simulations with a known truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from clap.proportion import Interval, clip_interval, wilson_interval
from clap.study.statistics import Comparison, compare, compare_folds, fold_interval, holm, seed_interval
from experiments.benchmarks.calibration import calibrate, calibrate_folds


def make_study(num_seeds: int = 5, num_clips: int = 60, *, gap: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Two configurations, (seeds, clips) each, with noise between seeds, clips and both."""
    generator = np.random.default_rng(0)
    clips = generator.normal(0.5, 0.2, num_clips)
    baseline = clips + generator.normal(0, 0.02, (num_seeds, 1)) + generator.normal(0, 0.1, (num_seeds, num_clips))
    other = clips + generator.normal(0, 0.02, (num_seeds, 1)) + generator.normal(0, 0.1, (num_seeds, num_clips)) + gap
    return baseline, other


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def test_clip_interval_approximates_the_clustered_standard_error() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 6, 400)
    totals = generator.binomial(counts, generator.beta(1, 1, 400)).astype(float)
    weights = counts / counts.sum()
    mean = totals.sum() / counts.sum()
    error = math.sqrt((weights**2 * (totals / counts - mean) ** 2).sum())
    found = ends(clip_interval(totals, counts))
    assert found == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_clip_interval_does_not_count_captions_as_clips() -> None:
    hits = np.random.default_rng(0).integers(0, 2, 100)
    once, five_times = clip_interval(hits, np.ones(100)), clip_interval(5 * hits, np.full(100, 5))
    assert ends(five_times) == pytest.approx(ends(once))


def test_clip_interval_is_reproducible() -> None:
    totals, counts = np.random.default_rng(0).random(50), np.ones(50)
    assert clip_interval(totals, counts) == clip_interval(totals, counts)
    assert clip_interval(totals, counts) != clip_interval(totals, counts, seed=1)


@pytest.mark.parametrize("hits", [0, 9, 71, 80])
def test_clip_interval_is_wilson_interval_near_0_and_1(hits: int) -> None:
    totals = 5 * (np.arange(80) < hits)
    assert ends(clip_interval(totals, np.full(80, 5))) == pytest.approx(ends(wilson_interval(hits / 80, 80)))


def test_clip_interval_near_1_uses_the_effective_number_of_clips() -> None:
    counts = np.array([1] * 50 + [50])
    expected = wilson_interval(1.0, 100**2 / (50 + 50**2))
    assert ends(clip_interval(counts, counts)) == pytest.approx(ends(expected))


def test_clip_interval_detects_hits_despite_rounding() -> None:
    assert clip_interval(np.full(80, 1 + 1e-7), np.ones(80)) == clip_interval(np.ones(80), np.ones(80))


def test_clip_interval_resamples_scores_that_are_not_binary() -> None:
    totals = np.random.default_rng(0).uniform(0, 0.02, 50)  # near 0, but not binary
    assert clip_interval(totals, np.ones(50)).high < 0.02


@pytest.mark.parametrize("quality", [0.03, 0.5, 0.97])
def test_clip_interval_covers_the_truth(quality: float) -> None:
    generator = np.random.default_rng(0)
    chance = generator.beta(2 * quality, 2 * (1 - quality), (300, 80))  # hit probability of a clip's five captions
    intervals = [clip_interval(totals, np.full(80, 5), draws=200) for totals in generator.binomial(5, chance)]
    assert np.mean([interval.low <= quality <= interval.high for interval in intervals]) > 0.93


def test_seed_interval_from_numbers_equals_scipy() -> None:
    scores = [0.41, 0.44, 0.4, 0.46]
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert ends(seed_interval(scores, level=0.9)) == pytest.approx((expected.low, expected.high))


def test_compare_from_numbers_equals_scipy() -> None:
    baseline, other = [3.0, 4.0, 3.5, 5.0], [2.5, 4.0, 2.0, 3.0]  # median ranks
    expected = stats.ttest_rel(other, baseline)
    found = compare(baseline, other)
    assert (found.difference, found.p_value) == pytest.approx((-1.0, expected.pvalue))
    assert ends(found.interval) == pytest.approx(tuple(expected.confidence_interval()))


def test_seed_interval_adds_the_clip_variance() -> None:
    scores, _ = make_study()
    error = math.sqrt(scores.mean(1).var(ddof=1) / 5 + scores.mean(0).var(ddof=1) / 60)
    half = stats.t.ppf(0.975, 4) * error
    assert ends(seed_interval(scores)) == pytest.approx((scores.mean() - half, scores.mean() + half))


def test_compare_pairs_clips() -> None:
    baseline, other = make_study()
    found = compare(baseline, other)
    low, high = ends(found.interval)
    assert found.difference == pytest.approx((other - baseline).mean())
    assert found.p_value is not None and found.p_value < 0.01 and low > 0
    low_alone, high_alone = ends(seed_interval(other))
    assert high - low < 0.8 * (high_alone - low_alone)  # the difficulty of the clips cancels


def test_compare_is_antisymmetric() -> None:
    baseline, other = make_study()
    there, back = compare(baseline, other), compare(other, baseline)
    assert (there.difference, there.p_value) == pytest.approx((-back.difference, back.p_value))


def test_p_value_is_the_level_whose_interval_touches_zero() -> None:
    found = compare(*make_study(gap=0.03))
    assert found.p_value is not None
    touching = compare(*make_study(gap=0.03), level=1 - found.p_value)
    assert ends(touching.interval)[0] == pytest.approx(0, abs=1e-9)


def test_counts_weight_clips() -> None:
    baseline, other = make_study()
    counts = np.arange(1, 61)
    assert compare(baseline, other, counts).difference == pytest.approx(
        np.average((other - baseline).mean(0), weights=counts)
    )
    equal = seed_interval(other, np.full(60, 5))
    assert ends(equal) == pytest.approx(ends(seed_interval(other)))


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_interval(num_seeds: int) -> None:
    baseline, other = make_study(num_seeds)
    assert seed_interval(other) is None
    assert compare(baseline, other) == Comparison(pytest.approx((other - baseline).mean()), None, None)
    assert compare(baseline[:, 0], other[:, 0]).interval is None


def test_scores_without_noise_have_no_interval() -> None:
    scores = np.full((3, 80), 0.3)
    assert seed_interval(scores) is None
    assert compare(scores, scores + 0.1) == Comparison(pytest.approx(0.1), None, None)
    assert compare([3.0, 3.0, 3.0], [3.0, 3.0, 3.0]) == Comparison(0.0, None, None)


def test_holm_equals_a_worked_example() -> None:
    """4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to the previous value."""
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])


def test_holm_keeps_none_and_does_not_count_it() -> None:
    assert holm([None, 0.03, None, 0.6, 0.6]) == [None, pytest.approx(0.09), None, 1.0, 1.0]
    assert holm([None]) == [None] and holm([]) == []


@pytest.mark.parametrize(
    ("num_seeds", "spread", "num_clips"),
    [(3, 0.0, 80), (3, 0.03, 200), (3, 0.06, 200), (5, 0.06, 200), (10, 0.03, 200), (10, 0.06, 80)],
)
def test_coverage_and_false_positives_are_at_the_nominal_level(num_seeds: int, spread: float, num_clips: int) -> None:
    """A short run of experiments/benchmarks/calibration.py with a tolerance of two points."""
    rates = calibrate(num_seeds, spread, num_clips, draws=1500)
    assert rates.score > 93 and rates.difference > 93 and rates.false_positives < 7


def test_common_methods_have_wrong_coverage() -> None:
    rates = calibrate(3, 0.06, 200, draws=1500)
    assert rates.score_seed_bootstrap < 80
    assert rates.false_positives_clips_alone > 25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_interval(np.ones((2, 3)), np.ones(3)), r"totals has shape \(2, 3\)"),
        (lambda: clip_interval([1.0], [1]), "at least two clips"),
        (lambda: clip_interval([1.0, 0.0], [1, 1, 1]), r"counts has shape \(3,\)"),
        (lambda: clip_interval([1.0, 0.0], [1, 0]), r"counts\[1\] is 0"),
        (lambda: clip_interval([1.0, 0.0], [1, 1], draws=0), "draws=0"),
        (lambda: seed_interval(np.ones((3, 4)), np.ones(3)), r"the scores have 4 clips"),
        (lambda: seed_interval(np.ones((3, 1))), r"at least two clips, or \(seeds,\)"),
        (lambda: seed_interval(np.ones(3), np.ones(3)), "do not give counts, which weight clips"),
        (lambda: seed_interval([]), r"scores has shape \(0,\)"),
        (lambda: seed_interval([1.0, 2.0, 3.0], level=1.0), "level=1.0"),
        (
            lambda: seed_interval([[1.0, 2.0], [math.nan, 3.0]]),
            r"scores\[1, 0\] is nan \(1 not finite\); give finite numbers",
        ),
        (lambda: compare(np.ones((3, 4)), np.ones((3, 5))), r"baseline \(3, 4\) and other \(3, 5\) differ in shape"),
        (lambda: compare(np.ones(3), [1.0, math.inf, 1.0]), r"other\[1\] is inf"),
        (lambda: holm([0.1, math.nan]), r"p_values\[1\] is nan"),
        (lambda: holm([1.2]), r"p_values\[0\] is 1.2"),
    ],
)
def test_wrong_arguments_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_interval_over_folds_is_that_of_nadeau_and_bengio() -> None:
    """Ten folds with one in ten clips for the test: variance times 1 / 10 + 1 / 9, nine degrees of freedom."""
    scores = np.random.default_rng(0).normal(0.5, 0.1, 10)
    half = stats.t.ppf(0.975, 9) * math.sqrt(scores.var(ddof=1) * (1 / 10 + 1 / 9))
    assert ends(fold_interval(scores)) == pytest.approx((scores.mean() - half, scores.mean() + half))


def test_folds_are_compared_in_pairs() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(0.5, 0.1, 5)
    other = baseline + 0.03 + generator.normal(0, 0.01, 5)
    found, same = compare_folds(baseline, other), compare_folds(baseline, other[::-1])
    assert found.difference == pytest.approx(same.difference) and found.p_value < 0.05 < same.p_value
    plain = stats.ttest_rel(other, baseline)
    t = plain.statistic / math.sqrt(5 * (1 / 5 + 1 / 4))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4)) and found.p_value > plain.pvalue


@pytest.mark.parametrize("scores", [[0.5], [0.4, 0.6], [0.5, 0.5, 0.5]])
def test_few_or_equal_folds_have_no_interval(scores: list[float]) -> None:
    assert fold_interval(scores) is None and compare_folds([0.0] * len(scores), scores).p_value is None


@pytest.mark.parametrize("scores", [np.ones((2, 3)), [], [0.1, np.nan]])
def test_scores_of_folds_are_one_finite_number_each(scores: ArrayLike) -> None:
    with pytest.raises(ValueError, match=r"give \(folds,\)|give finite numbers"):
        fold_interval(scores)


def test_compared_configurations_have_the_same_folds() -> None:
    with pytest.raises(ValueError, match="differ in shape; give the same folds"):
        compare_folds([0.1, 0.2, 0.3], [0.1, 0.2])


@pytest.mark.parametrize(("num_folds", "spread"), [(3, 0.04), (5, 0.02), (10, 0.01)])
def test_corrected_interval_over_folds_covers_where_plain_t_does_not(num_folds: int, spread: float) -> None:
    corrected, plain = calibrate_folds(num_folds, spread, draws=4000)
    assert corrected > 95 and plain < 94

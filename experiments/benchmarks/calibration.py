"""Simulates coverage and false positives of clap.study.statistics: python experiments/benchmarks/calibration.py

Prints two Markdown tables in a minute. The first is about seeds, with one row per number of seeds, spread between seeds
and number of clips. Each draw simulates three configurations: a baseline, one of equal quality, and one that is better
by GAP. The table compares `seed_interval` and `compare` with two common methods that fail: the percentile bootstrap
over seeds and a z test over clips alone. The second is about folds, with one row per number of folds and spread between
training sets: `fold_interval` and `compare_folds` next to Student's t without correction.
"""

import argparse
import itertools
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clap.study.statistics import corrected_t, student_t

SEEDS, SPREADS, CLIPS = (3, 5, 10), (0.0, 0.03, 0.06), (80, 200, 1000)
LEVEL = 0.95
TOLERANCE = 2.0  # percentage points
QUALITY, GAP = 0.4, 0.05  # mean hit probability before clipping to [0, 1]; lead of the better configuration
CLIP_SPREAD, INTERACTION = 0.3, 0.15  # standard deviations of a clip's difficulty, and of that for one configuration
FOLDS, TRAINING_SPREADS = (3, 4, 5, 10), (0.0, 0.01, 0.02, 0.04)
FOLD_NOISE = 0.05  # standard deviation of the score of a fold, by its clips and the seed of its training
BATCH = 1_000_000  # scores per batch of draws
RESAMPLES = 1000


@dataclass
class Rates:
    """Percentage of draws, by method: coverage of a score, coverage of a true difference, and false positives."""

    score: float
    score_seed_bootstrap: float
    score_clips_alone: float
    difference: float
    difference_seed_bootstrap: float
    difference_clips_alone: float
    false_positives: float
    false_positives_seed_bootstrap: float
    false_positives_clips_alone: float


HEADINGS = [field.name.replace("_", " ") for field in fields(Rates)]


def calibrate(num_seeds: int, spread: float, num_clips: int, *, draws: int, seed: int = 0) -> Rates:
    """Rates of one row; spread is the standard deviation of a configuration's score between seeds."""
    generator = np.random.default_rng([seed, num_seeds, round(1000 * spread), num_clips])
    slope = np.diff(stats.norm.cdf([0, 1], QUALITY, np.hypot(CLIP_SPREAD, INTERACTION)))[0]  # d score / d quality
    seed_spread = spread / slope
    truth, better = (expected_score(quality, seed_spread) for quality in (QUALITY, QUALITY + GAP))
    batch = max(1, BATCH // (num_seeds * num_clips))
    misses = []
    for start in range(0, draws, batch):
        shape = (min(batch, draws - start), num_seeds, num_clips)
        difficulty = CLIP_SPREAD * generator.standard_normal((shape[0], 1, num_clips), dtype=np.float32)
        baseline, equal, improved = (
            draw_hits(generator, quality + difficulty, shape, seed_spread)
            for quality in (QUALITY, QUALITY, QUALITY + GAP)
        )
        cases = ((baseline, truth), (improved - baseline, better - truth), (equal - baseline, 0.0))
        misses.append([miss for scores, true in cases for miss in find_misses(generator, scores, true)])
    missed = 100 * np.concatenate(misses, axis=1).mean(1)  # (9,)
    return Rates(*(100 - missed[:6]), *missed[6:])


def expected_score(quality: float, seed_spread: float) -> float:
    """Mean over all seeds and clips of a normally distributed hit probability, clipped to [0, 1]."""
    normal = stats.norm(quality, np.sqrt(CLIP_SPREAD**2 + INTERACTION**2 + seed_spread**2))
    inside = quality * (normal.cdf(1) - normal.cdf(0)) + normal.var() * (normal.pdf(0) - normal.pdf(1))
    return inside + normal.sf(1)


def draw_hits(
    generator: np.random.Generator, chance: np.ndarray, shape: tuple[int, int, int], seed_spread: float
) -> np.ndarray:
    """Hits (draws, seeds, clips), 0 or 1, of a configuration from the hit probability per clip (draws, 1, clips)."""
    draws, num_seeds, num_clips = shape
    chance = chance + INTERACTION * generator.standard_normal((draws, 1, num_clips), dtype=np.float32)
    chance = chance + np.float32(seed_spread) * generator.standard_normal((draws, num_seeds, 1), dtype=np.float32)
    return (generator.random(shape, dtype=np.float32) < chance).astype(np.float32)  # the comparison clips to [0, 1]


def find_misses(generator: np.random.Generator, scores: np.ndarray, truth: float) -> list[np.ndarray]:
    """Draws (draws,) whose interval excludes the truth: student_t, bootstrap over seeds, clips alone."""
    num_seeds, num_clips = scores.shape[1:]
    mean, half, _ = student_t(scores, np.full(num_clips, 1 / num_clips, dtype=np.float32), level=LEVEL)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES) / num_seeds
    low, high = np.quantile(scores.mean(2) @ seeds.T, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    error = scores.mean(1).std(1, ddof=1) / np.sqrt(num_clips)
    beyond = np.abs(mean - truth)
    return [beyond > half, (truth < low) | (truth > high), beyond > stats.norm.ppf((1 + LEVEL) / 2) * error]


def calibrate_folds(num_folds: int, spread: float, *, draws: int, seed: int = 0) -> tuple[float, float]:
    """Percentage of draws whose interval over folds covers the expected score, with and without correction.

    The score of a fold has the mean effect of the folds that it is trained on, each drawn once for the whole
    cross-validation. Scores are normal, so that the difference of two configurations of equal quality is distributed
    alike: false positives are the draws that are not covered.

    Args:
        spread: standard deviation of a configuration's score between training sets of this size.
    """
    generator = np.random.default_rng([seed, num_folds, round(1000 * spread)])
    effects = spread * np.sqrt(num_folds - 1) * generator.standard_normal((draws, num_folds))
    training = (effects.sum(axis=1, keepdims=True) - effects) / (num_folds - 1)  # of the other folds
    scores = training + FOLD_NOISE * generator.standard_normal((draws, num_folds))
    mean, half, _ = corrected_t(scores, level=LEVEL)
    plain = half / np.sqrt(1 + num_folds / (num_folds - 1))
    return tuple(float(100 * (np.abs(mean) <= width).mean()) for width in (half, plain))


def summarise(cells: list[str], rates: list[Rates]) -> str:
    """Which rows are conservative, and which have too low coverage or too many false positives."""
    nominal, alpha = 100 * LEVEL, 100 * (1 - LEVEL)
    slack = [(rate.score - nominal, rate.difference - nominal, alpha - rate.false_positives) for rate in rates]
    close = [cell for cell, found in zip(cells, slack, strict=True) if max(found) <= TOLERANCE]
    wrong = [cell for cell, found in zip(cells, slack, strict=True) if min(found) < -TOLERANCE]
    return (
        f"`student_t` is conservative by more than {TOLERANCE:g} points in {len(cells) - len(close)} of {len(cells)} "
        f"rows, all but {'; '.join(close) or 'none'}. Coverage too low or false positives too high by more than "
        f"{TOLERANCE:g} points: {'; '.join(wrong) or 'none'}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulates coverage and false positives of clap.study.statistics.")
    parser.add_argument("--draws", type=int, default=5000, help="simulated studies per row (default: %(default)s)")
    draws = parser.parse_args().draws
    print(
        f"{draws} draws per row; percent. Nominal: coverage {100 * LEVEL:g}, false positives {100 * (1 - LEVEL):g}.\n"
    )
    print(f"| seeds | spread, points | clips | {' | '.join(HEADINGS)} |")
    print("|" + "--:|" * (3 + len(HEADINGS)))
    cells, rates = [], []
    for num_seeds, spread, num_clips in itertools.product(SEEDS, SPREADS, CLIPS):
        rates.append(calibrate(num_seeds, spread, num_clips, draws=draws))
        cells.append(f"{num_seeds} seeds, {100 * spread:g} points, {num_clips} clips")
        numbers = " | ".join(f"{rate:.1f}" for rate in astuple(rates[-1]))
        print(f"| {num_seeds} | {100 * spread:g} | {num_clips} | {numbers} |", flush=True)
    print(f"\n{summarise(cells, rates)}\n")
    print("| folds | spread between training sets, points | coverage, corrected | coverage, Student's t |")
    print("|--:|--:|--:|--:|")
    for num_folds, spread in itertools.product(FOLDS, TRAINING_SPREADS):
        found = " | ".join(f"{rate:.1f}" for rate in calibrate_folds(num_folds, spread, draws=draws))
        print(f"| {num_folds} | {100 * spread:g} | {found} |")


if __name__ == "__main__":
    main()

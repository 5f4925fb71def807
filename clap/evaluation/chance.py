"""Chance level of a metric: its expected value if the candidates of every query are in random order.

A query has m relevant items among n candidates; the expected number among the first k is m k / n.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from clap.evaluation.metric_names import DEFAULT_METRICS, parse_metric
from clap.evaluation.ranks import RetrievalRanks
from clap.evaluation.retrieval_metrics import MEDIANS, Direction, highest_gain, list_directions, sum_by_query


def retrieval_chance(
    ranks: RetrievalRanks, *, num_clips: int, num_texts: int, metrics: Sequence[str] = DEFAULT_METRICS
) -> dict[str, float]:
    """Chance levels of the metrics of `retrieval_metrics` except the median ranks; they do not depend on the ranks.

    Args:
        num_clips, num_texts: candidates of a text and of a clip.
    """
    chance = {}
    for direction, candidates in zip(list_directions(ranks), (num_clips, num_texts), strict=True):
        relevant = direction.queries.bincount()[direction.counted].cpu().numpy()
        for name in metrics:
            key, k = parse_metric(name)
            if key == "ndcg_at_K":
                chance[f"{direction.name}/{name}"] = expected_ndcg(direction, candidates, k)
            elif name not in MEDIANS:
                chance[f"{direction.name}/{name}"] = float(EXPECTED[key](relevant, candidates, k).mean())
    return chance


def expected_recall(relevant: np.ndarray, candidates: int, k: int) -> float:
    """Probability that any relevant item is among the first k: 1 - C(n - m, k) / C(n, k) for m of n, mean over queries.

    Args:
        relevant: (queries,) number of relevant items.
    """
    return float(1 - missed_probability(relevant, candidates, k).mean())


def missed_probability(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Probability of each query that no relevant item is among the first k: C(n - m, k) / C(n, k)."""
    missed = np.ones(len(relevant))
    for rank in range(min(k, candidates)):
        missed *= np.clip(candidates - relevant - rank, 0, None) / (candidates - rank)
    return missed


def expected_average_precision(relevant: np.ndarray, candidates: int, k: int) -> float:
    """Mean over queries of `expected_average_precisions`."""
    return float(expected_average_precisions(relevant, candidates, k).mean())


def expected_average_precisions(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Expected average precision at k of each query, which is divided by the number m of relevant items, at most k.

    Args:
        relevant: (queries,) number of relevant items.
    """
    return expected_precision_sum(relevant, candidates, k) / np.minimum(relevant, min(k, candidates))


def expected_precision_sum(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Expected sum of the precisions at the relevant items among the first k.

    Rank r holds a relevant item with probability m / n; each of the r - 1 before it is then relevant with (m - 1) /
    (n - 1): m / n * sum_r (1 + (r - 1) (m - 1) / (n - 1)) / r over the first k ranks.
    """
    others = (relevant - 1) / max(candidates - 1, 1)
    k = min(k, candidates)
    return relevant / candidates * (harmonic(k) + (k - harmonic(k)) * others)


def expected_of_found(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Expected average precision at k, divided by the number h of relevant items among the first k.

    Given h, their ranks are random among the first k: H_k / k + (1 - H_k / k) (h - 1) / (k - 1), with the harmonic
    number H_k, and 0 for h = 0.
    """
    k = min(k, candidates)
    any_found = 1 - missed_probability(relevant, candidates, k)
    further = relevant * k / candidates - any_found  # expectation of h - 1 where h is not 0
    share = harmonic(k) / k
    return share * any_found + (1 - share) * further / max(k - 1, 1)


def expected_unsorted(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Expected `sum_unsorted` / m: H_k / k times the expectation of h (h + 1) / 2, of the number h found."""
    k = min(k, candidates)
    pairs = relevant * (relevant - 1) / max(candidates * (candidates - 1), 1) * k * (k - 1)  # of h (h - 1)
    return harmonic(k) / k * (pairs / 2 + relevant * k / candidates) / relevant


def expected_reciprocal_rank(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Sum over the first k ranks of the probability that the best item has this rank, divided by it."""
    reached = [missed_probability(relevant, candidates, rank) for rank in range(min(k, candidates) + 1)]
    return sum((before - after) / rank for rank, (before, after) in enumerate(itertools.pairwise(reached), 1))


def expected_ndcg(direction: Direction, candidates: int, k: int) -> float:
    """Every item has each rank with probability 1 / n: the sum of its discounts over the first k ranks / n."""
    discounts = (1 / np.log2(1 + np.arange(1, min(k, candidates) + 1))).sum() / candidates
    gain = sum_by_query(direction.grades, direction.queries)
    shares = gain / highest_gain(direction.grades, direction.queries, k)
    return float(discounts * shares[direction.counted].mean())


def harmonic(k: int) -> float:
    return float((1 / np.arange(1, k + 1)).sum())


# Key of metric_names.DEFINITIONS -> function of (queries,) relevant items, candidates and K that gives (queries,).
EXPECTED: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "recall_at_K": lambda m, n, k: 1 - missed_probability(m, n, k),
    "recall_at_K_of_all": lambda m, n, k: np.full(len(m), min(k, n) / n),
    "mean_average_precision_at_K": expected_average_precisions,
    "mean_average_precision_at_K_of_all": lambda m, n, k: expected_precision_sum(m, n, k) / m,
    "mean_average_precision_at_K_of_found": expected_of_found,
    "mean_average_precision_at_K_unsorted": expected_unsorted,
    "mean_reciprocal_rank_at_K": expected_reciprocal_rank,
    "mean_rank": lambda m, n, _: (n + 1) / (m + 1),
}

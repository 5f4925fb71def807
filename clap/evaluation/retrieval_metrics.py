"""Retrieval metrics of both directions from the ranks of the relevant items: per-query values and their means.

One function for each metric of `clap.evaluation.metric_names`; docs/metrics.md has the formulas.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clap.evaluation.metric_names import DEFAULT_METRICS, DIRECTIONS, name_both_directions, parse_metric
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.ranks import RetrievalRanks, best_of_each

RETRIEVAL_METRICS = name_both_directions(DEFAULT_METRICS)


@dataclass(frozen=True)
class Direction:
    """The relevant items of every query of a direction.

    Attributes:
        name: text_to_audio or audio_to_text.
        ranks: (items,) rank of every relevant item in the list of its query.
        queries: (items,) int64, the query of the item; every number from 0 on occurs.
        grades: (items,) float64, graded relevance, above 0.
        counted: (values,) the query of each value that is averaged: a text of several pairs may count several times.
        clips: (values,) row of the query's clip.
    """

    name: str
    ranks: Tensor
    queries: Tensor
    grades: Tensor
    counted: Tensor
    clips: Tensor


def list_directions(ranks: RetrievalRanks) -> Iterator[Direction]:
    """Text to audio, then audio to text, where clips without a relevant text are no queries.

    Without `text_clips` the text of every pair is a query, whose clip is the first one of the text: its queries are
    one, and an interval over clips would take them for independent.
    """
    texts, used_clips = ranks.pair_texts, ranks.pair_clips.unique(return_inverse=True)
    grades = torch.ones_like(texts, dtype=torch.float64) if ranks.grades is None else ranks.grades.double()
    if ranks.text_clips is None:
        counted, clips = texts, best_of_each(ranks.pair_clips, texts)[texts]
    else:
        counted, clips = torch.arange(len(ranks.text_clips), device=texts.device), ranks.text_clips
    yield Direction(DIRECTIONS[0], ranks.text_to_audio, texts, grades.to(texts.device), counted, clips)
    clips, of_pairs = used_clips
    counted = torch.arange(len(clips), device=texts.device)
    yield Direction(DIRECTIONS[1], ranks.audio_to_text, of_pairs, grades.to(texts.device), counted, clips)


def retrieval_metrics(ranks: RetrievalRanks, metrics: Sequence[str] = DEFAULT_METRICS) -> dict[str, float]:
    """Metrics of both directions, `text_to_audio/recall_at_1` and so on.

    Text to audio, the text of every pair is a query, or every text once (`RetrievalRanks.text_clips`); audio to text,
    every clip with a text is one. Recall, median and mean rank take the best of the relevant items of a query, mean
    average precision all of them.
    """
    found = {}
    for direction in list_directions(ranks):
        for name in metrics:
            values = query_values(direction, "mean_rank" if name in MEDIANS else name)
            found[f"{direction.name}/{name}"] = MEDIANS.get(name, mean)(values)
    return found


def retrieval_scores(ranks: RetrievalRanks, metrics: Sequence[str] = DEFAULT_METRICS) -> dict[str, QueryScores]:
    """Per-query scores of all metrics of `retrieval_metrics` but the median ranks."""
    return {
        f"{direction.name}/{name}": QueryScores(query_values(direction, name), direction.clips)
        for direction in list_directions(ranks)
        for name in metrics
        if name not in MEDIANS
    }


def query_values(direction: Direction, metric: str) -> Tensor:
    """(values,) float64 whose mean is a metric."""
    key, k = parse_metric(metric)
    return VALUES[key](direction, k)[direction.counted]


def hits_at(ranks: Tensor, k: int) -> Tensor:
    """Whether the rank of a query is at most k, (queries,) -> (queries,) float64; the mean is recall at k."""
    return (ranks <= k).double()


def mean(values: Tensor) -> float:
    return values.mean().item()


def median_rank(ranks: Tensor) -> float:
    """Median of (queries,); the mean of the middle two where their number is even."""
    return ranks.double().quantile(0.5).item()


def average_precisions_at(ranks: Tensor, queries: Tensor, k: int) -> Tensor:
    """Average precision of every query, cut at k.

    Sum of the precision at every relevant item among the first k, divided by the number of relevant items, at most k:
    1 where the relevant items lead the list.

    Args:
        ranks: (items,) rank of every relevant item in the list of its query.
        queries: (items,) int64, the query of the item; every number from 0 on occurs.

    Returns:
        (queries,) float64 in [0, 1].
    """
    return sum_precisions(ranks, queries, k) / queries.bincount().clamp(max=k)


def sum_precisions(ranks: Tensor, queries: Tensor, k: int) -> Tensor:
    """Sum of the precisions at the relevant items among the first k of each query, (queries,) float64."""
    order, place = sort_in_queries(ranks, queries)
    precision = torch.where(ranks[order] <= k, place / ranks[order].double(), 0.0)
    return sum_by_query(precision, queries[order])


def sum_unsorted(ranks: Tensor, queries: Tensor, k: int) -> Tensor:
    """As `sum_precisions`, with the items among the first k counted in the given order: LAION-CLAP."""
    is_found = (ranks <= k).long()
    order, _ = sort_in_queries(torch.arange(len(ranks), device=ranks.device), queries)
    counted = is_found[order].cumsum(0)  # over all queries
    before = sum_by_query(is_found, queries).long().cumsum(0) - sum_by_query(is_found, queries).long()
    place = counted - before[queries[order]]
    return sum_by_query(is_found[order] * place / ranks[order].double(), queries[order])


def ndcg_at(ranks: Tensor, queries: Tensor, grades: Tensor, k: int) -> Tensor:
    """Normalized discounted cumulative gain of every query, with the grade as gain (Järvelin & Kekäläinen 2002)."""
    return discounted_gain(ranks, queries, grades, k) / highest_gain(grades, queries, k)


def discounted_gain(ranks: Tensor, queries: Tensor, grades: Tensor, k: int) -> Tensor:
    """Sum of grade / log2(1 + rank) over the relevant items among the first k of each query, (queries,) float64."""
    return sum_by_query(torch.where(ranks <= k, grades / (1 + ranks.double()).log2(), 0.0), queries)


def highest_gain(grades: Tensor, queries: Tensor, k: int) -> Tensor:
    """`discounted_gain` of the order by grade, (queries,) float64."""
    order, place = sort_in_queries(-grades, queries)
    return discounted_gain(place, queries[order], grades[order], k)


def sort_in_queries(values: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Order of items by query, then by value, and their places in their queries, 1 for the lowest value.

    Args:
        values: (items,).
        queries: (items,) int64, the query of the item; every number from 0 on occurs.

    Returns:
        (items,) int64 both; the places are those of the ordered items.
    """
    order = values.argsort(stable=True)
    order = order[queries[order].argsort(stable=True)]
    counts = queries.bincount()
    first = counts.cumsum(0) - counts  # (queries,) where a query's items start
    return order, torch.arange(1, len(values) + 1, device=values.device) - first[queries[order]]


def sum_by_query(values: Tensor, queries: Tensor) -> Tensor:
    """(items,), (items,) int64 -> (queries,) float64."""
    total = torch.zeros(int(queries.max()) + 1, dtype=torch.float64, device=values.device)
    return total.index_add(0, queries, values.double())


def _best(direction: Direction) -> Tensor:
    return best_of_each(direction.ranks, direction.queries)


def _of_found(direction: Direction, k: int) -> Tensor:
    found = sum_by_query(hits_at(direction.ranks, k), direction.queries)
    return sum_precisions(direction.ranks, direction.queries, k) / found.clamp(min=1)


def _reciprocal_rank(direction: Direction, k: int) -> Tensor:
    best = _best(direction)
    return torch.where(best <= k, 1 / best.double(), 0.0)


def _recall_of_all(direction: Direction, k: int) -> Tensor:
    return sum_by_query(hits_at(direction.ranks, k), direction.queries) / direction.queries.bincount()


def _precision_of_all(direction: Direction, k: int) -> Tensor:
    return sum_precisions(direction.ranks, direction.queries, k) / direction.queries.bincount()


def _unsorted(direction: Direction, k: int) -> Tensor:
    return sum_unsorted(direction.ranks, direction.queries, k) / direction.queries.bincount()


# Metrics that are not means over queries -> function of the ranks (values,) of the best items.
MEDIANS: dict[str, Callable[[Tensor], float]] = {
    "median_rank": median_rank,
    "median_rank_floor": lambda ranks: float(math.floor(median_rank(ranks))),
}
# Key of metric_names.DEFINITIONS -> function of a direction and K that gives (queries,) float64.
VALUES: dict[str, Callable[[Direction, int], Tensor]] = {
    "recall_at_K": lambda own, k: hits_at(_best(own), k),
    "recall_at_K_of_all": _recall_of_all,
    "mean_average_precision_at_K": lambda own, k: average_precisions_at(own.ranks, own.queries, k),
    "mean_average_precision_at_K_of_all": _precision_of_all,
    "mean_average_precision_at_K_of_found": _of_found,
    "mean_average_precision_at_K_unsorted": _unsorted,
    "mean_reciprocal_rank_at_K": _reciprocal_rank,
    "ndcg_at_K": lambda own, k: ndcg_at(own.ranks, own.queries, own.grades, k),
    "mean_rank": lambda own, _: _best(own).double(),
}

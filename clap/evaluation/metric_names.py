"""Names of metrics: the retrieval metrics and their definitions in words, and where lower is better. Imports no torch.

docs/metrics.md has the formulas, and which papers use which variant.
"""

import re
from collections.abc import Sequence

DIRECTIONS = ("text_to_audio", "audio_to_text")
DEFAULT_METRICS = (
    "mean_average_precision_at_10",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "median_rank",
    "mean_average_precision_at_16",
    "mean_rank",
)
PRECISIONS = "mean over queries of the sum of the precisions at the relevant items among the first K, divided by"
DEFINITIONS = {  # K is a number from 1 on
    "recall_at_K": "share of queries with a relevant item among the first K",
    "recall_at_K_of_all": "mean over queries of the share of all relevant items that are among the first K",
    "mean_average_precision_at_K": f"{PRECISIONS} the number of all relevant items, at most K",
    "mean_average_precision_at_K_of_all": f"{PRECISIONS} the number of all relevant items",
    "mean_average_precision_at_K_of_found": f"{PRECISIONS} the number of those among the first K; 0 without one",
    "mean_average_precision_at_K_unsorted": "mean over queries of the sum of i / rank over the relevant items among "
    "the first K, i counting them in the order of the data, not of the ranks, divided by the number of all relevant",
    "mean_reciprocal_rank_at_K": "mean over queries of 1 / rank of the best relevant item, 0 beyond rank K",
    "ndcg_at_K": "mean over queries of the sum of grade / log2(1 + rank) over the relevant items among the first K, "
    "divided by its highest value",
    "median_rank": "median over queries of the rank of the best relevant item",
    "median_rank_floor": "median over queries of the rank of the best relevant item, rounded down",
    "mean_rank": "mean over queries of the rank of the best relevant item",
}
LOWER_IS_BETTER = ("median_rank", "median_rank_floor", "mean_rank", "/loss")


def lower_is_better(metric: str) -> bool:
    """Whether a lower value of a metric is better, by the end of its name: ranks and losses."""
    return metric.endswith(LOWER_IS_BETTER)


def parse_metric(name: str) -> tuple[str, int]:
    """Key of DEFINITIONS and K of a retrieval metric, 0 for one without K: `recall_at_5` -> (`recall_at_K`, 5).

    Raises:
        ValueError: there is no such metric.
    """
    found = re.search(r"_at_([1-9]\d*)(?=_|$)", name)
    key = name if found is None else f"{name[: found.start()]}_at_K{name[found.end() :]}"
    if key not in DEFINITIONS or (found is None and "_at_K" in key):
        known = ", ".join(DEFINITIONS)
        raise ValueError(f"evaluation.retrieval.metrics: {name} is not one of {known}, K being a number from 1 on")
    return key, int(found[1]) if found else 0


def define_metric(name: str) -> str:
    """The definition of a retrieval metric in words."""
    key, k = parse_metric(name)
    return re.sub(r"\bK\b", str(k), DEFINITIONS[key])


def name_both_directions(metrics: Sequence[str]) -> tuple[str, ...]:
    """`recall_at_1` -> `text_to_audio/recall_at_1`, `audio_to_text/recall_at_1`, one direction after the other."""
    return tuple(f"{direction}/{name}" for direction in DIRECTIONS for name in metrics)

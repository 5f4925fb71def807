"""Chance level of a metric: its expected value if the candidates of every query are in random order."""

import numpy as np
from numpy.typing import ArrayLike

from clap.evaluation.metrics import RETRIEVAL_METRICS


def retrieval_chance(pair_clips: ArrayLike, pair_texts: ArrayLike) -> dict[str, float]:
    """Chance levels of the metrics of `retrieval_metrics` except the median ranks.

    Args:
        pair_clips, pair_texts: (pairs,) rows of the clip and of the text of every relevant pair; each row occurs.
    """
    clips_of_text, texts_of_clip = np.bincount(pair_texts), np.bincount(pair_clips)
    numbers = {  # of relevant items for each query, and of candidates
        "text_to_audio": (clips_of_text[np.asarray(pair_texts)], len(texts_of_clip)),
        "audio_to_text": (texts_of_clip, len(clips_of_text)),
    }
    chance = {}
    for direction, (relevant, candidates) in numbers.items():
        for k in (1, 5, 10):
            chance[f"{direction}/recall_at_{k}"] = expected_recall(relevant, candidates, k)
        chance[f"{direction}/mean_average_precision_at_10"] = expected_average_precision(relevant, candidates, 10)
    return {name: chance[name] for name in RETRIEVAL_METRICS if name in chance}


def expected_recall(relevant: np.ndarray, candidates: int, k: int) -> float:
    """Probability that any relevant item is among the first k: 1 - C(n - m, k) / C(n, k) for m of n, mean over queries.

    Args:
        relevant: (queries,) number of relevant items.
    """
    missed = np.ones(len(relevant))
    for rank in range(min(k, candidates)):
        missed *= np.clip(candidates - relevant - rank, 0, None) / (candidates - rank)
    return float(1 - missed.mean())


def expected_average_precision(relevant: np.ndarray, candidates: int, k: int) -> float:
    """Mean over queries of `expected_average_precisions`."""
    return float(expected_average_precisions(relevant, candidates, k).mean())


def expected_average_precisions(relevant: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Expected average precision at k of each query, which is divided by the number m of relevant items, at most k.

    Rank r holds a relevant item with probability m / n; each of the r - 1 before it is then relevant with (m - 1) /
    (n - 1): m / n * sum_r (1 + (r - 1) (m - 1) / (n - 1)) / r over the first k ranks.

    Args:
        relevant: (queries,) number of relevant items.
    """
    others = (relevant - 1) / max(candidates - 1, 1)
    k = min(k, candidates)
    harmonic = (1 / np.arange(1, k + 1)).sum()
    return relevant / candidates * (harmonic + (k - harmonic) * others) / np.minimum(relevant, k)

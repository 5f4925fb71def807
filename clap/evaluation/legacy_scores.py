"""Per-query scores of runs whose evaluation/*.npz were written before evaluators declared them."""

from collections.abc import Mapping

import numpy as np
import torch

from clap.evaluation.query_scores import QueryScores
from clap.evaluation.ranks import RetrievalRanks
from clap.evaluation.retrieval_metrics import RETRIEVAL_METRICS, retrieval_scores


def read_legacy_scores(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, QueryScores]]:
    """Names of the metrics behind a file's arrays, without `<split>/<dataset>/`, and their per-query scores."""
    if "hit" in arrays:
        hits = arrays["hit"]
        scores = {"zero_shot/accuracy": QueryScores(hits, np.arange(len(hits)))}
        return ("zero_shot/accuracy", "zero_shot/log_likelihood"), scores
    if "text_clip" in arrays:
        clips, *ranks = (
            torch.from_numpy(arrays[key]) for key in ("text_clip", "text_to_audio_rank", "audio_to_text_rank")
        )
        ranks = RetrievalRanks(clips, torch.arange(len(clips)), *ranks)
        return RETRIEVAL_METRICS, retrieval_scores(ranks)
    return (), {}

"""recall@k, mAP@10, median rank, accuracy: functions from tensors to per-query values and metrics.

A rank starts at 1. A tie with a wrong answer counts against the model, so that equal embeddings earn nothing.
A clip may have any number of captions (Clotho and the AudioCaps test set have five).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clap.evaluation.query_scores import QueryScores

RETRIEVAL_METRICS = tuple(
    f"{direction}/{name}"
    for direction in ("text_to_audio", "audio_to_text")
    for name in ("mean_average_precision_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "median_rank")
)
CHUNK_SIZE = 512  # texts compared at a time: 512 x 20000 float32 are 41 MB


@dataclass
class RetrievalRanks:
    """Rank of every relevant item, in both directions.

    Attributes:
        text_to_clip: (texts,) row of the clip that a text describes.
        text_to_audio: (texts,) rank of its clip among all clips, for the text as query.
        audio_to_text: (texts,) rank of the text among all texts, for its clip as query.
        best_caption: (clips,) rank of the best of a clip's own texts, for the clip as query.
    """

    text_to_clip: Tensor
    text_to_audio: Tensor
    audio_to_text: Tensor
    best_caption: Tensor


def retrieval_ranks(similarity: Tensor, text_to_clip: Tensor) -> RetrievalRanks:
    """Ranks by counting the items that are at least as similar, without sorting.

    Args:
        similarity: (clips, texts), larger is nearer.
        text_to_clip: (texts,) int64, row of the clip that a text describes.

    Raises:
        ValueError: similarity is not finite, or the shapes do not match.
    """
    _check_retrieval(similarity, text_to_clip)
    chunks = torch.arange(len(text_to_clip), device=similarity.device).split(CHUNK_SIZE)
    text_to_audio = torch.cat([_rank_clips(similarity, text_to_clip, chunk) for chunk in chunks])
    audio_to_text = torch.cat([_rank_texts(similarity, text_to_clip, chunk) for chunk in chunks])
    best_caption = torch.full((len(similarity),), len(text_to_clip), device=similarity.device)
    best_caption = best_caption.scatter_reduce(0, text_to_clip, audio_to_text, "amin")
    return RetrievalRanks(text_to_clip, text_to_audio, audio_to_text, best_caption)


def hits_at(ranks: Tensor, k: int) -> Tensor:
    """Whether the rank of a query is at most k, (queries,) -> (queries,) float64; the mean is recall at k."""
    return (ranks <= k).double()


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
    order = ranks.argsort()
    order = order[queries[order].argsort(stable=True)]  # by query, then by rank
    num_relevant = queries.bincount()
    first = num_relevant.cumsum(0) - num_relevant  # (queries,) where a query's items start
    found = torch.arange(1, len(ranks) + 1, device=ranks.device) - first[queries[order]]  # 1 for the best item
    precision = torch.where(ranks[order] <= k, found / ranks[order].double(), 0.0)
    total = precision.new_zeros(len(num_relevant)).index_add(0, queries[order], precision)
    return total / num_relevant.clamp(max=k)


def retrieval_metrics(ranks: RetrievalRanks) -> dict[str, float]:
    """Metrics of both directions, `text_to_audio/recall_at_1` and so on.

    Text to audio, every text is a query with one relevant clip. Audio to text, recall and median rank take the best of
    a clip's texts, mean average precision all of them.
    """
    metrics = {}
    for direction, best, _, values in _each_direction(ranks):
        metrics |= {f"{direction}/{name}": value.mean().item() for name, value in values.items()}
        metrics[f"{direction}/median_rank"] = median_rank(best)
    return metrics


def retrieval_scores(ranks: RetrievalRanks) -> dict[str, QueryScores]:
    """Per-query scores of all metrics of `retrieval_metrics` but the median ranks."""
    return {
        f"{direction}/{name}": QueryScores(value, clips)
        for direction, _, clips, values in _each_direction(ranks)
        for name, value in values.items()
    }


def zero_shot_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the right class scores above every other: (clips, classes), (clips,) int64 -> (clips,) bool."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not belong together; give "
            "(clips, classes) and (clips,)"
        )
    _check_finite(logits, "logits")
    own = logits.gather(1, targets[:, None])  # (clips, 1)
    return (logits >= own).sum(dim=1) == 1


def accuracy(hits: Tensor) -> float:
    """Fraction of clips (clips,) that are hits."""
    return hits.double().mean().item()


def _each_direction(ranks: RetrievalRanks) -> Iterator[tuple[str, Tensor, Tensor, dict[str, Tensor]]]:
    """Direction, best rank and clip of each query, and the values (queries,) of metrics that are means over queries."""
    texts = torch.arange(len(ranks.text_to_clip), device=ranks.text_to_clip.device)
    clips = torch.arange(len(ranks.best_caption), device=ranks.best_caption.device)
    for direction, best, query_clips, precisions in (
        ("text_to_audio", ranks.text_to_audio, ranks.text_to_clip, (ranks.text_to_audio, texts)),
        ("audio_to_text", ranks.best_caption, clips, (ranks.audio_to_text, ranks.text_to_clip)),
    ):
        values = {f"recall_at_{k}": hits_at(best, k) for k in (1, 5, 10)}
        values["mean_average_precision_at_10"] = average_precisions_at(*precisions, 10)
        yield direction, best, query_clips, values


def _rank_clips(similarity: Tensor, text_to_clip: Tensor, chunk: Tensor) -> Tensor:
    """(chunk,) rank of each text's clip among all clips."""
    own = similarity[text_to_clip[chunk], chunk]
    return (similarity[:, chunk] >= own).sum(dim=0)  # the clip counts itself: 1 is the best


def _rank_texts(similarity: Tensor, text_to_clip: Tensor, chunk: Tensor) -> Tensor:
    """(chunk,) rank of each text among all texts, for its clip; equal captions of one clip do not hurt one another."""
    scores = similarity[text_to_clip[chunk]]  # (chunk, texts)
    own = scores.gather(1, chunk[:, None])
    each_text = torch.arange(scores.shape[1], device=scores.device)
    behind = (text_to_clip[chunk, None] == text_to_clip) & (each_text > chunk[:, None])
    return ((scores > own) | ((scores == own) & ~behind)).sum(dim=1)


def _check_retrieval(similarity: Tensor, text_to_clip: Tensor) -> None:
    if similarity.ndim != 2 or text_to_clip.shape != similarity.shape[1:]:
        raise ValueError(
            f"similarity {tuple(similarity.shape)} and text_to_clip {tuple(text_to_clip.shape)} do not belong "
            "together; give (clips, texts) and (texts,)"
        )
    _check_finite(similarity, "similarity")
    if text_to_clip.min() < 0 or text_to_clip.max() >= len(similarity):
        raise ValueError(
            f"text_to_clip runs from {text_to_clip.min()} to {text_to_clip.max()}; similarity has the rows "
            f"0 to {len(similarity) - 1}"
        )
    silent = (text_to_clip.bincount(minlength=len(similarity)) == 0).nonzero()
    if len(silent):
        raise ValueError(f"clip {silent[0].item()} (of {len(silent)} such) has no text in text_to_clip; drop its row")


def _check_finite(scores: Tensor, name: str) -> None:
    bad = (~scores.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{name}[{row}, {column}] is {scores[row, column].item()} ({len(bad)} entries are not finite); look for "
            "clips or weights that are not finite, and whether optimizer.lr is too high"
        )

"""Small galleries with ties, several captions a clip and several clips a caption, and metrics by plain loops."""

import math

import torch
from torch import Tensor

from clap.corpus import Clip, Corpus
from clap.evaluation.metric_names import DEFAULT_METRICS
from clap.evaluation.ranks import RetrievalRanks, retrieval_ranks

VARIANTS = (
    *(
        "recall_at_50",
        "recall_at_1_of_all",
        "recall_at_5_of_all",
        "recall_at_10_of_all",
        "median_rank_floor",
        "ndcg_at_3",
        "ndcg_at_16",
    ),
    *("mean_average_precision_at_3", "mean_average_precision_at_3_of_all", "mean_average_precision_at_16_of_all"),
    *("mean_average_precision_at_10_of_found", "mean_average_precision_at_4_unsorted", "mean_reciprocal_rank_at_10"),
)
ALL_METRICS = (*DEFAULT_METRICS, *VARIANTS)


class Tones(Corpus):
    """Given clips, the same in every split."""

    name = "tones"

    def __init__(self, clips: list[Clip]) -> None:
        self.listed = clips

    def clips(self, split: str) -> list[Clip]:
        return self.listed


def rank_matrix(similarity: Tensor, pair_clips: Tensor, pair_texts: Tensor | None = None) -> RetrievalRanks:
    """Ranks of a similarity matrix (clips, texts): its rows are the cosines with unit vectors, exactly."""
    return retrieval_ranks(similarity, torch.eye(similarity.shape[1]), pair_clips, pair_texts)


def make_ties(num_clips: int, num_texts: int, *, several: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of small integers, whose products are exact and often equal, and pairs in any order."""
    generator = torch.Generator().manual_seed(seed)
    audio, text = (torch.randint(-1, 2, (n, 4), generator=generator).float() for n in (num_clips, num_texts))
    pairs = torch.cat(
        [torch.arange(num_clips), torch.randint(num_clips, (num_texts - num_clips,), generator=generator)]
    )
    pairs = torch.stack([pairs, torch.arange(num_texts)])
    if several:
        pairs = torch.cat([pairs, torch.stack([torch.arange(num_clips), torch.arange(num_clips).flip(0)])], dim=1)
        pairs = pairs.unique(dim=1)
    return audio, text, *pairs[:, torch.randperm(pairs.shape[1], generator=generator)]


def golden_ranks(tensors: dict[str, Tensor]) -> RetrievalRanks:
    return rank_matrix(tensors["in/similarity_audio_by_text"], torch.arange(185) // 5)


def loop_query(ordered: list[float], ranks: list[int], metric: str) -> float:
    """A metric of one query.

    Args:
        ordered: grade of the candidate at each rank, 0 if it is irrelevant.
        ranks: of the relevant candidates in the order of the data.
    """
    name, _, tail = metric.partition("_at_")
    k, _, variant = tail.partition("_")
    first = ordered[: int(k or 0)]
    total, found = sum(grade > 0 for grade in ordered), sum(grade > 0 for grade in first)
    if name == "recall":
        return found / total if variant == "of_all" else float(found > 0)
    if name == "mean_reciprocal_rank":
        return next((1 / rank for rank, grade in enumerate(first, 1) if grade > 0), 0.0)
    if name == "ndcg":
        highest = sorted(ordered, reverse=True)[: int(k)]
        gain, best = (sum(g / math.log2(1 + rank) for rank, g in enumerate(own, 1)) for own in (first, highest))
        return gain / best
    if name == "mean_average_precision":
        precisions = [sum(g > 0 for g in first[:rank]) / rank for rank, grade in enumerate(first, 1) if grade > 0]
        if variant == "unsorted":
            precisions = [i / rank for i, rank in enumerate((rank for rank in ranks if rank <= int(k)), 1)]
        divisor = {"": min(total, int(k)), "of_all": total, "of_found": max(found, 1), "unsorted": total}[variant]
        return sum(precisions) / divisor
    return min(ranks)  # of median and mean rank


def loop_metrics(
    scores: list[list[float]], pairs: list[tuple[int, int]], grades: list[float], *, once: bool
) -> dict[str, float]:
    """All metrics of scores (clips, texts), one query at a time.

    Args:
        once: whether a text of several clips is one query, instead of one for each clip.
    """
    grade_of, place_of = dict(zip(pairs, grades, strict=True)), {pair: place for place, pair in enumerate(pairs)}
    num_clips, num_texts = len(scores), len(scores[0])
    texts = range(num_texts) if once else [text for _, text in pairs]
    queries = {
        "text_to_audio": [[((clip, text), scores[clip][text]) for clip in range(num_clips)] for text in texts],
        "audio_to_text": [
            [((clip, text), scores[clip][text]) for text in range(num_texts)] for clip in range(num_clips)
        ],
    }
    metrics = {}
    for direction, lists in queries.items():
        values: dict[str, list[float]] = {metric: [] for metric in ALL_METRICS}
        for candidates in lists:
            own = [grade_of.get(pair, 0) for pair, _ in candidates]
            if not any(own):
                continue
            # Of equal scores the irrelevant come first, then the relevant in the order of the data.
            keys = [(-score, own[item] > 0, place_of.get(pair, -1)) for item, (pair, score) in enumerate(candidates)]
            order = sorted(range(len(candidates)), key=keys.__getitem__)
            rank_of = {candidates[item][0]: rank for rank, item in enumerate(order, 1)}
            ranks = [rank_of[pair] for pair in pairs if pair in rank_of]
            for metric in ALL_METRICS:
                values[metric].append(loop_query([own[item] for item in order], ranks, metric))
        for metric, found in values.items():
            found = sorted(found) if "median" in metric else found
            value = sum(found) / len(found)
            if "median" in metric:
                value = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
            metrics[f"{direction}/{metric}"] = math.floor(value) if metric == "median_rank_floor" else value
    return metrics

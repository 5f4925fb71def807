"""recall@k, mAP, median rank, accuracy: functions from tensors to per-query values and metrics.

A rank starts at 1. A tie with a wrong answer counts against the model, so that equal embeddings earn nothing.
A clip may have any number of texts (Clotho and the AudioCaps test set have five), a text any number of clips.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clap.evaluation.query_scores import QueryScores

RETRIEVAL_METRICS = tuple(
    f"{direction}/{name}"
    for direction in ("text_to_audio", "audio_to_text")
    for name in ("mean_average_precision_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "median_rank")
)
BLOCK_SIZE = 512  # clips and texts whose cosines are held at a time: 1 MB
MAX_PAIRS = 4096  # that are compared with a block at a time: 8 MB
NOT_FINITE = "look for clips or weights that are not finite, and whether optimizer.lr is too high"


@dataclass
class RetrievalRanks:
    """Rank of every relevant pair of a clip and a text, in both directions.

    Attributes:
        pair_clips: (pairs,) row of the clip.
        pair_texts: (pairs,) row of the text; a text without a second clip occurs once.
        text_to_audio: (pairs,) rank of the clip among all clips, for the text as query.
        audio_to_text: (pairs,) rank of the text among all texts, for the clip as query.
    """

    pair_clips: Tensor
    pair_texts: Tensor
    text_to_audio: Tensor
    audio_to_text: Tensor

    @property
    def best_clip(self) -> Tensor:
        """(texts,) rank of the best clip of a text, for the text as query."""
        return best_of_each(self.text_to_audio, self.pair_texts)

    @property
    def best_text(self) -> Tensor:
        """(clips,) rank of the best text of a clip, for the clip as query."""
        return best_of_each(self.audio_to_text, self.pair_clips)


def retrieval_ranks(
    audio_embedding: Tensor, text_embedding: Tensor, pair_clips: Tensor, pair_texts: Tensor | None = None
) -> RetrievalRanks:
    """Ranks by counting the items that are at least as similar, without sorting and without the similarity matrix.

    The cosines are computed in blocks of one shape, of which a few MB are held at a time, on the embeddings' device.

    Args:
        audio_embedding: (clips, embed_dim), unit norm.
        text_embedding: (texts, embed_dim), unit norm.
        pair_clips: (pairs,) int64, row of the clip of each relevant pair.
        pair_texts: (pairs,) int64, row of its text; None: every text describes one clip, and pair i is of text i.

    Raises:
        ValueError: an embedding is not finite, the shapes do not match, a clip or text is in no pair, or a pair is
            given twice.
    """
    if pair_texts is None:
        pair_texts = torch.arange(len(text_embedding), device=text_embedding.device)
    _check_retrieval(audio_embedding, text_embedding, pair_clips, pair_texts)
    own = _score_pairs(audio_embedding, text_embedding, pair_clips, pair_texts)  # (pairs,)
    text_to_audio, audio_to_text = torch.zeros_like(pair_clips), torch.zeros_like(pair_clips)
    pairs_of_clips, pairs_of_texts = _group_by_block(pair_clips), _group_by_block(pair_texts)
    for i, chosen_by_clip in enumerate(pairs_of_clips):
        for j, chosen_by_text in enumerate(pairs_of_texts):
            scores = _score_block(audio_embedding, text_embedding, i, j)
            for chosen in chosen_by_text.split(MAX_PAIRS):
                columns = scores.index_select(1, pair_texts[chosen] - j * BLOCK_SIZE)
                text_to_audio[chosen] += (columns >= own[chosen]).float().sum(dim=0).long()
            for chosen in chosen_by_clip.split(MAX_PAIRS):
                rows = scores[pair_clips[chosen] - i * BLOCK_SIZE]
                audio_to_text[chosen] += (rows >= own[chosen, None]).sum(dim=1)
    # A pair counts itself, so that 1 is the best rank. Relevant items with equal scores do not hurt one another.
    text_to_audio -= _count_later_ties(own, pair_texts)
    audio_to_text -= _count_later_ties(own, pair_clips)
    return RetrievalRanks(pair_clips, pair_texts, text_to_audio, audio_to_text)


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


def ranked_precisions(audio_embedding: Tensor, class_embedding: Tensor, is_positive: Tensor) -> Tensor:
    """Average precision of every class over all clips, ranked by their cosine with it.

    With m positive clips at the ranks r_1 < ... < r_m it is 1 / m * sum_i i / r_i. Of clips with equal cosines the
    negative ones come first.

    Args:
        audio_embedding: (clips, embed_dim), unit norm.
        class_embedding: (classes, embed_dim), unit norm.
        is_positive: (clips, classes) bool, with one or more clips of each class.

    Returns:
        (classes,) float64 in (0, 1].

    Raises:
        ValueError: the shapes do not match, a class has no clip, or an embedding is not finite.
    """
    if is_positive.shape != (len(audio_embedding), len(class_embedding)) or not is_positive.any(dim=0).all():
        raise ValueError(
            f"is_positive is {tuple(is_positive.shape)} for {len(audio_embedding)} clips and {len(class_embedding)} "
            "classes; give (clips, classes) with one or more clips of each class"
        )
    blocks, precisions = range(-(-len(audio_embedding) // BLOCK_SIZE)), []
    for j, positive in enumerate(is_positive.T.split(BLOCK_SIZE)):  # (block, clips)
        scores = torch.cat([_score_block(audio_embedding, class_embedding, i, j).T for i in blocks], dim=1)
        _check_finite(scores.T)
        order = positive.byte().argsort(stable=True)
        order = order.gather(1, scores.gather(1, order).argsort(descending=True, stable=True))
        found = positive.gather(1, order).double()
        ranks = torch.arange(1, len(audio_embedding) + 1, device=found.device)
        precisions.append((found * found.cumsum(dim=1) / ranks).sum(dim=1) / found.sum(dim=1))
    return torch.cat(precisions)


def retrieval_metrics(ranks: RetrievalRanks) -> dict[str, float]:
    """Metrics of both directions, `text_to_audio/recall_at_1` and so on.

    Text to audio, the text of every pair is a query; audio to text, every clip is one. Recall and median rank take the
    best of the relevant items of a query, mean average precision all of them.
    """
    metrics = {}
    for direction, best, _, values in _each_direction(ranks):
        metrics |= {f"{direction}/{name}": value.mean().item() for name, value in values.items()}
        metrics[f"{direction}/median_rank"] = median_rank(best)
    return metrics


def retrieval_scores(ranks: RetrievalRanks) -> dict[str, QueryScores]:
    """Per-query scores of all metrics of `retrieval_metrics` but the median ranks.

    Queries with one text of several clips have one score, and count as queries of the first of the clips: else an
    interval over clips would take them for independent.
    """
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
    _check_finite(logits)
    own = logits.gather(1, targets[:, None])  # (clips, 1)
    return (logits >= own).sum(dim=1) == 1


def predict_classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Class that scores highest, another one in a tie with the right one: (clips, classes), (clips,) -> (clips,)."""
    hits = zero_shot_hits(logits, targets)
    others = logits.scatter(1, targets[:, None], -torch.inf).argmax(dim=1)
    return torch.where(hits, targets, others)


def accuracy(hits: Tensor) -> float:
    """Fraction of clips (clips,) that are hits."""
    return hits.double().mean().item()


def best_of_each(ranks: Tensor, queries: Tensor) -> Tensor:
    """Lowest value of each query, (items,) -> (queries,); every number from 0 on occurs in queries (items,) int64."""
    best = torch.full((int(queries.max()) + 1,), torch.iinfo(ranks.dtype).max, dtype=ranks.dtype, device=ranks.device)
    return best.scatter_reduce(0, queries, ranks, "amin")


def _each_direction(ranks: RetrievalRanks) -> Iterator[tuple[str, Tensor, Tensor, dict[str, Tensor]]]:
    """Direction, best rank and clip of each query, and the values (queries,) of metrics that are means over queries."""
    texts, clips = ranks.pair_texts, torch.arange(len(ranks.best_text), device=ranks.pair_clips.device)
    for direction, best, query_clips, precisions in (
        (
            "text_to_audio",
            ranks.best_clip[texts],
            best_of_each(ranks.pair_clips, texts)[texts],  # the first clip of a text: all its queries are one
            average_precisions_at(ranks.text_to_audio, texts, 10)[texts],
        ),
        ("audio_to_text", ranks.best_text, clips, average_precisions_at(ranks.audio_to_text, ranks.pair_clips, 10)),
    ):
        values = {f"recall_at_{k}": hits_at(best, k) for k in (1, 5, 10)}
        values["mean_average_precision_at_10"] = precisions
        yield direction, best, query_clips, values


def _score_block(audio_embedding: Tensor, text_embedding: Tensor, i: int, j: int) -> Tensor:
    """Cosines (clips, texts) of block i of the clips and block j of the texts.

    Every product has the full size of a block: libraries choose another order of summation for another shape, and equal
    embeddings would differ in the last bit.
    """
    blocks = audio_embedding.split(BLOCK_SIZE)[i], text_embedding.split(BLOCK_SIZE)[j]
    padded = [F.pad(block, (0, 0, 0, BLOCK_SIZE - len(block))) for block in blocks]
    return (padded[0] @ padded[1].T)[: len(blocks[0]), : len(blocks[1])]


def _score_pairs(audio_embedding: Tensor, text_embedding: Tensor, pair_clips: Tensor, pair_texts: Tensor) -> Tensor:
    """(pairs,) cosines of relevant pairs, from the same products as those of all other pairs."""
    own = audio_embedding.new_empty(len(pair_clips))
    for i, of_clips in enumerate(_group_by_block(pair_clips)):
        found = pair_texts[of_clips] // BLOCK_SIZE
        for j in found.unique().tolist():
            chosen = of_clips[found == j]
            scores = _score_block(audio_embedding, text_embedding, i, j)
            own[chosen] = scores[pair_clips[chosen] - i * BLOCK_SIZE, pair_texts[chosen] - j * BLOCK_SIZE]
    return own


def _group_by_block(rows: Tensor) -> list[Tensor]:
    """For each block of rows, the indices of the pairs in it: (pairs,) -> (pairs of the block,) each."""
    blocks = rows // BLOCK_SIZE
    return list(blocks.argsort(stable=True).split(blocks.bincount().tolist()))


def _count_later_ties(scores: Tensor, queries: Tensor) -> Tensor:
    """For each item, the number of later items of the same query with an equal score; all (items,)."""
    order = scores.argsort(stable=True)
    order = order[queries[order].argsort(stable=True)]  # by query, then by score, then by place
    queries, scores = queries[order], scores[order]
    is_new = (queries[1:] != queries[:-1]) | (scores[1:] != scores[:-1])
    run = F.pad(is_new.cumsum(0), (1, 0))  # (items,) number of the run of equal scores
    last = run.bincount().cumsum(0) - 1  # (runs,) place of its last item
    return torch.empty_like(order).index_copy(0, order, last[run] - torch.arange(len(order), device=order.device))


def _check_retrieval(audio_embedding: Tensor, text_embedding: Tensor, pair_clips: Tensor, pair_texts: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (audio_embedding, text_embedding, pair_clips, pair_texts)]
    if [len(shape) for shape in shapes] != [2, 2, 1, 1] or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[3]:
        raise ValueError(
            "audio_embedding {}, text_embedding {}, pair_clips {} and pair_texts {} do not belong together; give "
            "(clips, embed_dim), (texts, embed_dim), (pairs,) and (pairs,)".format(*shapes)
        )
    for name, rows, item, embedding in (
        ("pair_clips", pair_clips, "clip", audio_embedding),
        ("pair_texts", pair_texts, "text", text_embedding),
    ):
        count = len(embedding)
        bad = (~embedding.sum(dim=1).isfinite()).nonzero()  # (bad, 1)
        if len(bad):
            raise ValueError(
                f"the embedding of {item} {bad[0].item()} is not finite ({len(bad)} of {count} are not); {NOT_FINITE}"
            )
        if rows.min() < 0 or rows.max() >= count:
            raise ValueError(f"{name} runs from {rows.min()} to {rows.max()}; there are the {item}s 0 to {count - 1}")
        unused = (rows.bincount(minlength=count) == 0).nonzero()
        if len(unused):
            raise ValueError(f"{item} {unused[0].item()} (of {len(unused)} such) is not in {name}; drop its embedding")
    if len((pair_clips * len(text_embedding) + pair_texts).unique()) < len(pair_clips):
        raise ValueError("pair_clips and pair_texts have a pair twice; give each pair of a clip and a text once")


def _check_finite(logits: Tensor) -> None:
    bad = (~logits.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"logits[{row}, {column}] is {logits[row, column].item()} ({len(bad)} entries are not finite); {NOT_FINITE}"
        )

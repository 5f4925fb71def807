"""Ranks, recall and mAP@10 against plain loops and stored brute-force values."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clap.evaluation.metrics
from clap.evaluation.metrics import (
    RETRIEVAL_METRICS,
    RetrievalRanks,
    accuracy,
    average_precisions_at,
    hits_at,
    median_rank,
    predict_classes,
    retrieval_metrics,
    retrieval_ranks,
    retrieval_scores,
    zero_shot_hits,
)
from clap.proportion import wilson_interval
from clap.study.statistics import clip_interval


def rank_matrix(similarity: Tensor, pair_clips: Tensor, pair_texts: Tensor | None = None) -> RetrievalRanks:
    """Ranks of a similarity matrix (clips, texts): its rows are the cosines with unit vectors, exactly."""
    return retrieval_ranks(similarity, torch.eye(similarity.shape[1]), pair_clips, pair_texts)


def make_retrieval(num_clips: int = 7, num_texts: int = 25) -> tuple[Tensor, Tensor]:
    """Any number of captions a clip, in any order."""
    generator = torch.Generator().manual_seed(0)
    extra = torch.randint(num_clips, (num_texts - num_clips,), generator=generator)
    text_to_clip = torch.cat([torch.arange(num_clips), extra])[torch.randperm(num_texts, generator=generator)]
    return torch.randn(num_clips, num_texts, generator=generator), text_to_clip


def loop_metrics(similarity: list[list[float]], text_to_clip: list[int]) -> dict[str, float]:
    """Every list sorted, one query at a time; no ties."""
    queries = []
    for text, clip in enumerate(text_to_clip):
        column = [row[text] for row in similarity]
        queries.append(("text_to_audio", [sorted(column, reverse=True).index(column[clip]) + 1]))
    for clip, row in enumerate(similarity):
        ordered = sorted(row, reverse=True)
        own = [ordered.index(row[text]) + 1 for text, other in enumerate(text_to_clip) if other == clip]
        queries.append(("audio_to_text", sorted(own)))
    metrics = {}
    for direction in ("text_to_audio", "audio_to_text"):
        ranks = [own for name, own in queries if name == direction]
        best = sorted(own[0] for own in ranks)
        precisions = [
            sum((i + 1) / rank for i, rank in enumerate(own) if rank <= 10) / min(10, len(own)) for own in ranks
        ]
        metrics |= {f"{direction}/recall_at_{k}": sum(rank <= k for rank in best) / len(best) for k in (1, 5, 10)}
        metrics[f"{direction}/mean_average_precision_at_10"] = sum(precisions) / len(precisions)
        metrics[f"{direction}/median_rank"] = (best[(len(best) - 1) // 2] + best[len(best) // 2]) / 2
    return metrics


@pytest.mark.parametrize(("num_clips", "num_texts"), [(7, 25), (1, 1), (3, 60), (12, 12)])
def test_retrieval_metrics_equal_loop(num_clips: int, num_texts: int) -> None:
    similarity, text_to_clip = make_retrieval(num_clips, num_texts)
    metrics = retrieval_metrics(rank_matrix(similarity, text_to_clip))
    assert metrics == pytest.approx(loop_metrics(similarity.tolist(), text_to_clip.tolist()))


def count_ranks(scores: Tensor, pair_clips: Tensor, pair_texts: Tensor) -> tuple[list[int], list[int]]:
    """Both ranks of every pair, one comparison at a time; of relevant items with equal scores the first is ahead."""
    pairs = list(zip(pair_clips.tolist(), pair_texts.tolist(), strict=True))
    relevant, ranks = {pair: place for place, pair in enumerate(pairs)}, ([], [])
    for place, (clip, text) in enumerate(pairs):
        queries = [[(c, text) for c in range(len(scores))], [(clip, t) for t in range(scores.shape[1])]]
        for direction, items in enumerate(queries):
            own, ahead = scores[clip, text], [(scores[item], relevant.get(item, -1)) for item in items]
            ranks[direction].append(sum(score > own or (score == own and tie <= place) for score, tie in ahead))
    return ranks


def make_ties(num_clips: int, num_texts: int, *, several: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of small integers, whose products are exact and often equal, and pairs in any order."""
    generator = torch.Generator().manual_seed(0)
    audio, text = (torch.randint(-1, 2, (n, 4), generator=generator).float() for n in (num_clips, num_texts))
    pairs = torch.cat(
        [torch.arange(num_clips), torch.randint(num_clips, (num_texts - num_clips,), generator=generator)]
    )
    pairs = torch.stack([pairs, torch.arange(num_texts)])
    if several:
        pairs = torch.cat([pairs, torch.stack([torch.arange(num_clips), torch.arange(num_clips).flip(0)])], dim=1)
        pairs = pairs.unique(dim=1)
    return audio, text, *pairs[:, torch.randperm(pairs.shape[1], generator=generator)]


@pytest.mark.parametrize("several", [False, True], ids=["one clip a text", "several clips a text"])
@pytest.mark.parametrize("block", [1, 4, 7, 512])
def test_ranks_in_blocks_are_those_of_single_comparisons(
    monkeypatch: pytest.MonkeyPatch, block: int, several: bool
) -> None:
    monkeypatch.setattr(clap.evaluation.metrics, "BLOCK_SIZE", block)
    monkeypatch.setattr(clap.evaluation.metrics, "MAX_PAIRS", 5)
    audio, text, pair_clips, pair_texts = make_ties(13, 30, several=several)
    ranks = retrieval_ranks(audio, text, pair_clips, pair_texts)
    expected = count_ranks((audio.double() @ text.double().T).long(), pair_clips, pair_texts)
    assert (ranks.text_to_audio.tolist(), ranks.audio_to_text.tolist()) == expected


def test_equal_embeddings_tie_in_any_place_of_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of another shape may round differently; those of all blocks have one shape."""
    monkeypatch.setattr(clap.evaluation.metrics, "BLOCK_SIZE", 64)
    torch.manual_seed(0)
    audio, text = torch.randn(10, 300).repeat(15, 1), torch.randn(10, 300).repeat(15, 1)
    ranks = retrieval_ranks(audio, text, torch.arange(150))
    scores = (audio[:10].double() @ text[:10].double().T).repeat(15, 15)
    own = scores.diagonal()
    assert ranks.text_to_audio.tolist() == (scores >= own).sum(dim=0).tolist()
    assert ranks.audio_to_text.tolist() == (scores >= own[:, None]).sum(dim=1).tolist()


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of a result."""

    size = 0

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(item.numel() for item in tree_leaves(result) if isinstance(item, Tensor))])
        return result


def test_similarity_matrix_is_never_whole() -> None:
    """Of 16 million cosines, at most a block or the pairs that are compared with it are held."""
    embedding = torch.randn(4000, 8)
    with LargestTensor() as largest:
        retrieval_ranks(embedding, embedding, torch.arange(4000))
    assert largest.size <= clap.evaluation.metrics.BLOCK_SIZE * clap.evaluation.metrics.MAX_PAIRS


def test_several_relevant_clips_of_a_text() -> None:
    """Two clips share text 0: both are relevant, the better one gives the rank of its two queries."""
    similarity = torch.tensor([[0.2, 0.9], [0.8, 0.3], [0.5, 0.1]])
    ranks = rank_matrix(similarity, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0]))
    assert ranks.text_to_audio.tolist() == [3, 2, 2]
    metrics = retrieval_metrics(ranks)
    assert metrics["text_to_audio/median_rank"] == 2
    precisions = [(1 / 2 + 2 / 3) / 2, 1 / 2, (1 / 2 + 2 / 3) / 2]
    assert metrics["text_to_audio/mean_average_precision_at_10"] == pytest.approx(sum(precisions) / 3)
    assert metrics["audio_to_text/recall_at_1"] == pytest.approx(1 / 3)
    scores = retrieval_scores(ranks)
    assert scores["text_to_audio/recall_at_1"].clips.tolist() == [0, 1, 0]
    assert scores["audio_to_text/recall_at_1"].clips.tolist() == [0, 1, 2]


def test_interval_of_queries_with_few_texts_is_not_that_of_many_clips() -> None:
    """Of 400 clips with one of ten captions, half of the captions find a clip of theirs."""
    texts = torch.arange(400) % 10
    found = (texts < 5).long()
    ranks = RetrievalRanks(torch.arange(400), texts, 2 - found, torch.ones(400, dtype=torch.long))
    scores = retrieval_scores(ranks)["text_to_audio/recall_at_1"]
    interval = clip_interval(np.bincount(scores.clips, scores.values)[:10], np.bincount(scores.clips))
    assert scores.mean == 0.5 and interval == wilson_interval(0.5, 10)


def test_perfect_similarity_scores_one() -> None:
    text_to_clip = torch.arange(4).repeat_interleave(3)
    metrics = retrieval_metrics(rank_matrix(torch.eye(4)[:, text_to_clip], text_to_clip))
    assert set(metrics.values()) == {1.0}


def test_equal_embeddings_rank_last() -> None:
    ranks = rank_matrix(torch.zeros(4, 4), torch.arange(4))
    assert ranks.text_to_audio.tolist() == ranks.audio_to_text.tolist() == [4, 4, 4, 4]


def test_equal_captions_of_one_clip_do_not_hurt_one_another() -> None:
    similarity = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.2, 0.8]])
    assert rank_matrix(similarity, torch.tensor([0, 0, 1])).audio_to_text.tolist() == [1, 2, 1]


def test_clip_has_the_rank_of_its_best_caption() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.6, 0.7, 0.8]])
    assert rank_matrix(similarity, torch.tensor([0, 0, 1])).best_text.tolist() == [1, 1]


def test_average_precision_is_cut_at_k() -> None:
    ranks, queries = torch.tensor([11, 2, 1]), torch.tensor([0, 1, 0])
    assert average_precisions_at(ranks, queries, 10).tolist() == [0.5, 0.5]


def test_average_precision_divides_by_at_most_k() -> None:
    queries = torch.zeros(12, dtype=torch.long)
    assert average_precisions_at(torch.arange(1, 13), queries, 10).item() == 1


def test_recall_counts_from_rank_one() -> None:
    assert hits_at(torch.tensor([1, 2, 5, 6]), 5).tolist() == [1, 1, 1, 0]


def test_median_of_even_number_is_between() -> None:
    assert median_rank(torch.tensor([1, 10, 2, 3])) == 2.5


def test_zero_shot_hits_compare_with_target() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]])
    assert zero_shot_hits(logits, torch.tensor([1, 1])).tolist() == [True, False]


def test_zero_shot_tie_is_a_miss() -> None:
    assert zero_shot_hits(torch.zeros(1, 3), torch.tensor([0])).tolist() == [False]


def test_predicted_class_is_the_right_one_only_for_a_hit() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.9, 0.2], [0.5, 0.1, 0.5], [0.3, 0.3, 0.3]])
    targets = torch.tensor([1, 2, 0, 0])
    predicted = predict_classes(logits, targets)
    assert predicted.tolist() == [1, 1, 2, 1]
    assert torch.equal(predicted == targets, zero_shot_hits(logits, targets))
    assert predict_classes(torch.zeros(1, 1), torch.tensor([0])).tolist() == [0]


def test_accuracy_is_a_fraction() -> None:
    assert accuracy(torch.tensor([True, False, True, True])) == 0.75


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("item", ["clip", "text"])
def test_embedding_that_is_not_finite_is_refused(value: float, item: str) -> None:
    embeddings = {"clip": torch.ones(7, 4), "text": torch.ones(7, 4)}
    embeddings[item][3, 2] = value
    with pytest.raises(ValueError, match=rf"the embedding of {item} 3 is not finite \(1 of 7 are not\); look for"):
        retrieval_ranks(*embeddings.values(), torch.arange(7))


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits\[0, 1\]"):
        zero_shot_hits(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("pair_clips", "pair_texts", "message"),
    [
        ([0, 1], None, "do not belong together"),
        ([0, 1, 2], None, "pair_clips runs from 0 to 2; there are the clips 0 to 1"),
        ([0, 0, 0], None, r"clip 1 \(of 1 such\) is not in pair_clips"),
        ([0, 1, 1], [0, 2, 2], r"text 1 \(of 1 such\) is not in pair_texts"),
        ([0, 1, 1, 1], [0, 1, 2, 2], "a pair twice"),
    ],
)
def test_wrong_pairs_are_refused(pair_clips: list[int], pair_texts: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_matrix(torch.zeros(2, 3), torch.tensor(pair_clips), pair_texts and torch.tensor(pair_texts))


def golden_ranks(tensors: dict[str, Tensor]) -> RetrievalRanks:
    return rank_matrix(tensors["in/similarity_audio_by_text"], torch.arange(185) // 5)


def test_golden_ranks_are_exact(golden) -> None:
    _, tensors = golden("retrieval")
    ranks = golden_ranks(tensors)
    assert ranks.text_to_audio.tolist() == tensors["out/t2a_rank"].tolist()
    assert ranks.best_text.tolist() == tensors["out/a2t_best_rank"].tolist()
    each_caption = tensors["out/a2t_rank_of_each_caption"].sort(dim=1).values
    assert ranks.audio_to_text.view(37, 5).sort(dim=1).values.tolist() == each_caption.tolist()


def test_golden_metrics(golden) -> None:
    config, tensors = golden("retrieval")
    metrics = retrieval_metrics(golden_ranks(tensors))
    words = {"R@1": "recall_at_1", "R@5": "recall_at_5", "R@10": "recall_at_10", "medR": "median_rank"}
    words |= {"mAP@10": "mean_average_precision_at_10"}
    for short, direction in (("t2a", "text_to_audio"), ("a2t", "audio_to_text")):
        expected = {f"{direction}/{word}": config["metrics"][f"{short}/{key}"] for key, word in words.items()}
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_golden_mean_average_precision_is_not_the_unsorted_one(golden) -> None:
    config, tensors = golden("retrieval")
    unsorted = config["metrics"]["a2t/mAP@10_laion_unsorted"]
    sorted_value = retrieval_metrics(golden_ranks(tensors))["audio_to_text/mean_average_precision_at_10"]
    assert (round(sorted_value, 3), round(unsorted, 3)) == (0.360, 0.505)


def test_every_retrieval_metric_is_announced():
    similarity, text_to_clip = make_retrieval()
    assert set(retrieval_metrics(rank_matrix(similarity, text_to_clip))) == set(RETRIEVAL_METRICS)

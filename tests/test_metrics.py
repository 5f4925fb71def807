"""Ranks, recall and mAP@10 against plain loops and stored brute-force values."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import clap.evaluation.metrics
from clap.evaluation.metrics import (
    RETRIEVAL_METRICS,
    RetrievalRanks,
    accuracy,
    average_precisions_at,
    hits_at,
    median_rank,
    retrieval_metrics,
    retrieval_ranks,
    zero_shot_hits,
)


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
    metrics = retrieval_metrics(retrieval_ranks(similarity, text_to_clip))
    assert metrics == pytest.approx(loop_metrics(similarity.tolist(), text_to_clip.tolist()))


def test_chunks_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity, text_to_clip = make_retrieval()
    whole = retrieval_ranks(similarity, text_to_clip)
    monkeypatch.setattr(clap.evaluation.metrics, "CHUNK_SIZE", 4)
    parts = retrieval_ranks(similarity, text_to_clip)
    assert_close(parts.text_to_audio, whole.text_to_audio)
    assert_close(parts.audio_to_text, whole.audio_to_text)


def test_perfect_similarity_scores_one() -> None:
    text_to_clip = torch.arange(4).repeat_interleave(3)
    metrics = retrieval_metrics(retrieval_ranks(torch.eye(4)[:, text_to_clip], text_to_clip))
    assert set(metrics.values()) == {1.0}


def test_equal_embeddings_rank_last() -> None:
    ranks = retrieval_ranks(torch.zeros(4, 4), torch.arange(4))
    assert ranks.text_to_audio.tolist() == ranks.audio_to_text.tolist() == [4, 4, 4, 4]


def test_equal_captions_of_one_clip_do_not_hurt_one_another() -> None:
    similarity = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.2, 0.8]])
    assert retrieval_ranks(similarity, torch.tensor([0, 0, 1])).audio_to_text.tolist() == [1, 2, 1]


def test_clip_has_the_rank_of_its_best_caption() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.6, 0.7, 0.8]])
    assert retrieval_ranks(similarity, torch.tensor([0, 0, 1])).best_caption.tolist() == [1, 1]


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


def test_accuracy_is_a_fraction() -> None:
    assert accuracy(torch.tensor([True, False, True, True])) == 0.75


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_similarity_that_is_not_finite_is_refused(value: float) -> None:
    similarity, text_to_clip = make_retrieval()
    similarity[3, 5] = value
    with pytest.raises(ValueError, match=r"similarity\[3, 5\]"):
        retrieval_ranks(similarity, text_to_clip)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits\[0, 1\]"):
        zero_shot_hits(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("text_to_clip", "message"),
    [([0, 1], "do not belong together"), ([0, 1, 2], "runs from 0 to 2"), ([0, 0, 0], "clip 1 .* has no text")],
)
def test_wrong_text_to_clip_is_refused(text_to_clip: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(torch.zeros(2, 3), torch.tensor(text_to_clip))


def golden_ranks(tensors: dict[str, Tensor]) -> RetrievalRanks:
    return retrieval_ranks(tensors["in/similarity_audio_by_text"], torch.arange(185) // 5)


def test_golden_ranks_are_exact(golden) -> None:
    _, tensors = golden("retrieval")
    ranks = golden_ranks(tensors)
    assert ranks.text_to_audio.tolist() == tensors["out/t2a_rank"].tolist()
    assert ranks.best_caption.tolist() == tensors["out/a2t_best_rank"].tolist()
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
    assert set(retrieval_metrics(retrieval_ranks(similarity, text_to_clip))) == set(RETRIEVAL_METRICS)

"""Retrieval metrics against loops written from their definitions, and stored brute-force values."""

import numpy as np
import pytest
import torch
from retrieval_cases import ALL_METRICS, golden_ranks, loop_metrics, make_ties, rank_matrix
from torch import Tensor

from clap.evaluation.metric_names import define_metric, lower_is_better, parse_metric
from clap.evaluation.ranks import RetrievalRanks, retrieval_ranks
from clap.evaluation.retrieval_metrics import (
    MEDIANS,
    RETRIEVAL_METRICS,
    average_precisions_at,
    hits_at,
    median_rank,
    retrieval_metrics,
    retrieval_scores,
)
from clap.proportion import clip_interval, wilson_interval


def make_retrieval(num_clips: int = 7, num_texts: int = 25) -> tuple[Tensor, Tensor]:
    """Any number of captions a clip, in any order."""
    generator = torch.Generator().manual_seed(0)
    extra = torch.randint(num_clips, (num_texts - num_clips,), generator=generator)
    text_to_clip = torch.cat([torch.arange(num_clips), extra])[torch.randperm(num_texts, generator=generator)]
    return torch.randn(num_clips, num_texts, generator=generator), text_to_clip


@pytest.mark.parametrize("case", range(6))
def test_metrics_equal_loops_over_the_definitions(case: int) -> None:
    """Ties, several captions a clip, several clips a caption, grades, clips without a caption."""
    generator = torch.Generator().manual_seed(case)
    audio, text, pair_clips, pair_texts = make_ties(13, 30, several=case % 2 == 1, seed=case)
    grades = torch.randint(1, 4, (len(pair_clips),), generator=generator) if case >= 2 else None
    text_clips = pair_clips.new_zeros(30) if case >= 4 else None
    if text_clips is not None:  # clip 5 is a candidate only
        kept = (pair_clips != 5) | (pair_texts.bincount()[pair_texts] == 1)
        pair_clips, pair_texts, grades = pair_clips[kept], pair_texts[kept], grades[kept]
    ranks = retrieval_ranks(audio, text, pair_clips, pair_texts, grades=grades, text_clips=text_clips)
    scores = (audio.double() @ text.double().T).tolist()
    pairs = list(zip(pair_clips.tolist(), pair_texts.tolist(), strict=True))
    own = [1] * len(pairs) if grades is None else grades.tolist()
    expected = loop_metrics(scores, pairs, own, once=text_clips is not None)
    assert retrieval_metrics(ranks, ALL_METRICS) == pytest.approx(expected)
    means = {name: found.mean for name, found in retrieval_scores(ranks, ALL_METRICS).items()}
    assert means == pytest.approx({name: value for name, value in expected.items() if "median" not in name})


@pytest.mark.parametrize(("num_clips", "num_texts"), [(7, 25), (1, 1), (3, 60), (12, 12)])
def test_metrics_equal_loops_without_ties(num_clips: int, num_texts: int) -> None:
    similarity, text_to_clip = make_retrieval(num_clips, num_texts)
    pairs = [(clip, text) for text, clip in enumerate(text_to_clip.tolist())]
    expected = loop_metrics(similarity.tolist(), pairs, [1] * num_texts, once=False)
    assert retrieval_metrics(rank_matrix(similarity, text_to_clip), ALL_METRICS) == pytest.approx(expected)


def test_unsorted_precision_is_that_of_laion(golden) -> None:
    config, tensors = golden("retrieval")
    name = "audio_to_text/mean_average_precision_at_10_unsorted"
    found = retrieval_metrics(golden_ranks(tensors), ["mean_average_precision_at_10_unsorted"])
    assert found[name] == pytest.approx(config["metrics"]["a2t/mAP@10_laion_unsorted"], abs=1e-6)


@pytest.mark.parametrize(
    "name", ["recall", "recall_at_0", "recall_at_K", "ndcg_at_10_of_all", "mean_rank_at_3", "recall_at_5x"]
)
def test_unknown_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"evaluation.retrieval.metrics: {name} is not one of recall_at_K, "):
        parse_metric(name)


def test_definition_has_the_number() -> None:
    assert define_metric("recall_at_5") == "share of queries with a relevant item among the first 5"


@pytest.mark.parametrize("name", ALL_METRICS)
def test_lower_is_better_for_ranks(name: str) -> None:
    assert lower_is_better(f"val/x/text_to_audio/{name}") == (name in (*MEDIANS, "mean_rank"))


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


def test_golden_metrics(golden) -> None:
    config, tensors = golden("retrieval")
    metrics = retrieval_metrics(golden_ranks(tensors), ALL_METRICS)
    words = {"R@1": "recall_at_1", "R@5": "recall_at_5", "R@10": "recall_at_10", "medR": "median_rank"}
    words |= {"mAP@10": "mean_average_precision_at_10", "meanR": "mean_rank"}
    for short, direction in (("t2a", "text_to_audio"), ("a2t", "audio_to_text")):
        expected = {f"{direction}/{word}": config["metrics"][f"{short}/{key}"] for key, word in words.items()}
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    of_all = {f"audio_to_text/recall_at_{k}_of_all": config["metrics"][f"a2t/recall_fraction@{k}"] for k in (1, 5, 10)}
    assert {key: metrics[key] for key in of_all} == pytest.approx(of_all, abs=1e-6)
    assert metrics["text_to_audio/median_rank_floor"] == config["metrics"]["t2a/medR_laion_floor"]


def test_golden_mean_average_precision_is_not_the_unsorted_one(golden) -> None:
    config, tensors = golden("retrieval")
    unsorted = config["metrics"]["a2t/mAP@10_laion_unsorted"]
    sorted_value = retrieval_metrics(golden_ranks(tensors))["audio_to_text/mean_average_precision_at_10"]
    assert (round(sorted_value, 3), round(unsorted, 3)) == (0.360, 0.505)


def test_every_retrieval_metric_is_announced():
    similarity, text_to_clip = make_retrieval()
    assert set(retrieval_metrics(rank_matrix(similarity, text_to_clip))) == set(RETRIEVAL_METRICS)

"""Chance levels against the mean over random orders of the candidates."""

import numpy as np
import pytest
import torch

from clap.evaluation.chance import expected_average_precision, expected_recall, retrieval_chance
from clap.evaluation.metric_names import DEFAULT_METRICS
from clap.evaluation.ranks import retrieval_ranks
from clap.evaluation.retrieval_metrics import MEDIANS, retrieval_metrics

PAIRS = [(0, 0), (0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (5, 5), (5, 6)]  # clips with one to three texts
VARIANTS = (
    *("recall_at_2_of_all", "mean_average_precision_at_2", "mean_average_precision_at_2_of_all", "ndcg_at_2"),
    *("mean_average_precision_at_4_of_found", "mean_average_precision_at_4_unsorted", "mean_reciprocal_rank_at_3"),
    *("mean_reciprocal_rank_at_20", "mean_average_precision_at_20_of_found", "ndcg_at_20", "recall_at_20_of_all"),
)


def test_retrieval_chance_is_the_mean_over_random_embeddings():
    clips, texts = (torch.tensor(rows) for rows in zip(*PAIRS, strict=True))
    grades = 1.0 + torch.arange(len(PAIRS)) % 3
    generator, names = torch.Generator().manual_seed(0), [*DEFAULT_METRICS, *VARIANTS]
    drawn = []
    for _ in range(600):
        audio, text = (
            torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1)
            for n in (max(clips) + 1, max(texts) + 1)
        )
        ranks = retrieval_ranks(audio, text, clips, texts, grades=grades)
        drawn.append(retrieval_metrics(ranks, names))
    chance = retrieval_chance(ranks, num_clips=6, num_texts=7, metrics=names)
    assert chance.keys() == {name for name in drawn[0] if not name.endswith(tuple(MEDIANS))}
    for name, value in chance.items():
        tolerance = 0.03 * (3 if name.endswith("mean_rank") else 1)
        assert np.mean([metrics[name] for metrics in drawn]) == pytest.approx(value, abs=tolerance), name


def test_chance_of_a_query_with_one_answer():
    one = np.array([1])
    assert expected_recall(one, 100, 10) == pytest.approx(0.1)
    assert expected_average_precision(one, 100, 10) == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 100)


def test_chance_is_one_if_all_candidates_are_answers():
    every = np.array([3])
    assert expected_recall(every, 3, 10) == 1
    assert expected_average_precision(every, 3, 10) == pytest.approx(1)

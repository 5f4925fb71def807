"""Chance levels against the mean over random orders of the candidates."""

import numpy as np
import pytest
import torch

from clap.evaluation.chance import expected_average_precision, expected_recall, retrieval_chance
from clap.evaluation.metrics import retrieval_metrics, retrieval_ranks

PAIRS = [(0, 0), (0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (5, 5), (5, 6)]  # clips with one to three texts


def test_retrieval_chance_is_the_mean_over_random_embeddings():
    clips, texts = (list(rows) for rows in zip(*PAIRS, strict=True))
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(600):
        audio, text = (
            torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1)
            for n in (max(clips) + 1, max(texts) + 1)
        )
        drawn.append(retrieval_metrics(retrieval_ranks(audio, text, torch.tensor(clips), torch.tensor(texts))))
    chance = retrieval_chance(clips, texts)
    assert chance.keys() == {name for name in drawn[0] if not name.endswith("median_rank")}
    for name, value in chance.items():
        assert np.mean([metrics[name] for metrics in drawn]) == pytest.approx(value, abs=0.03), name


def test_chance_of_a_query_with_one_answer():
    one = np.array([1])
    assert expected_recall(one, 100, 10) == pytest.approx(0.1)
    assert expected_average_precision(one, 100, 10) == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 100)


def test_chance_is_one_if_all_candidates_are_answers():
    every = np.array([3])
    assert expected_recall(every, 3, 10) == 1
    assert expected_average_precision(every, 3, 10) == pytest.approx(1)

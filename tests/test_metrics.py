"""Zero-shot hits, predicted classes and accuracy."""

import pytest
import torch

from clap.evaluation.metrics import accuracy, predict_classes, zero_shot_hits


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


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits\[0, 1\]"):
        zero_shot_hits(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))

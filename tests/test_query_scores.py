"""Per-query scores are float64 arrays of one length."""

import numpy as np
import pytest
import torch

from clap.evaluation.query_scores import QueryScores


def test_query_scores_take_tensors() -> None:
    scores = QueryScores(torch.tensor([True, False]), torch.tensor([0, 1]))
    assert (scores.values.dtype, scores.clips.dtype, scores.mean) == (np.float64, np.int64, 0.5)


@pytest.mark.parametrize(("values", "clips"), [([], []), ([1.0, 0.0], [0]), ([[1.0]], [[0]])])
def test_query_scores_of_another_shape_are_refused(values: list, clips: list) -> None:
    with pytest.raises(ValueError, match=r"give \(queries,\) for both, with at least one query"):
        QueryScores(values, clips)

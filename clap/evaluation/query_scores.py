"""Per-query scores of a metric, in the form that every evaluator declares them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


@dataclass
class QueryScores:
    """The values whose mean is a metric, and the clip of each.

    Tensors of any device and arrays are taken.

    Attributes:
        values: (queries,) float64.
        clips: (queries,) int64, row of the query's clip among the clip ids of its evaluation.

    Raises:
        ValueError: the two are not one-dimensional, not of one length, or empty.
    """

    values: np.ndarray
    clips: np.ndarray

    def __post_init__(self) -> None:
        self.values, self.clips = to_array(self.values, np.float64), to_array(self.clips, np.int64)
        if self.values.ndim != 1 or self.values.shape != self.clips.shape or not self.values.size:
            raise ValueError(
                f"query scores have values {self.values.shape} and clips {self.clips.shape}; give (queries,) for both, "
                "with at least one query"
            )

    @property
    def mean(self) -> float:
        """The metric."""
        return float(self.values.mean())


def to_array(values: Tensor | ArrayLike, dtype: type) -> np.ndarray:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=dtype)

"""Gradients and weights that are not finite: they stop a run before they reach the weights or a checkpoint."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

MIN_LOSS_SCALE = 2.0**-10  # of fp16; it starts at 2**16 and halves with each skipped step
ADVICE = "checkpoints stay as they were; lower optimizer.lr or set trainer.precision=fp32"


class NotFiniteError(ValueError, ArithmeticError):
    """A loss, gradient or weight is not finite; the same step would fail again."""


def find_non_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """`NAME is nan` of the first tensor with a value that is not finite; None if all are finite."""
    for name, tensor in tensors:
        if tensor is not None and not torch.isfinite(tensor).all():
            return f"{name} is {tensor[~torch.isfinite(tensor)][0].item()}"
    return None


def describe_gradients(optimizer: Optimizer, named: Iterable[tuple[str, Tensor]]) -> str:
    """The first parameter whose gradient is not finite and its parameter group; else that their norm is not finite.

    Args:
        named: names and parameters of the model and the loss.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in named:
        if id(parameter) in groups and (found := find_non_finite([(f"the gradient of {name}", parameter.grad)])):
            group = groups[id(parameter)].get("name")
            return found + (f" (parameter group {group})" if group else "")
    return "the norm of the gradients exceeds float32"

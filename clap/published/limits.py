"""Limits on the model that a checkpoint describes, checked before memory is allocated."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from clap.config import flatten
from clap.config.saved import check_integers
from clap.published.load import one_line_errors

MAX_INPUT = {"n_fft": 2**15, "n_mels": 2**10, "window": 3600.0, "image_size": 2**12}  # of an audio encoder
MAX_BUFFERS = 2**30  # bytes of filters, masks and indices, which are not in the file
SPARE_TENSORS = 1000


def check_described(
    build: Callable[..., nn.Module], config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str
) -> nn.Module:
    """Build the model of a config without memory, and return it.

    Args:
        build: called with the keyword `config`.
        weights: of its file. While it is built, a model may have four times as many tensors, because parts are dropped,
            and some more.

    Raises:
        ValueError: the config describes a model that is too large for the file, or none.
    """
    check_numbers(config, where)
    with torch.device("meta"), limit_parameters(4 * len(weights) + SPARE_TENSORS), one_line_errors(where):
        model = build(config=config)
    size = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if size > MAX_BUFFERS:
        raise ValueError(f"{where}: refused, its config describes buffers of {size / 1e9:.1f} GB; its sizes are wrong")
    return model


def check_numbers(config: Mapping[str, Any], where: str) -> None:
    """Check the numbers of a config that determine memory.

    Raises:
        ValueError: a number is too large.
    """
    for key, value in flatten(config):
        largest = MAX_INPUT.get(key.rpartition(".")[2])
        if isinstance(value, int | float) and largest is not None and abs(value) > largest:
            raise ValueError(f"{where}: refused, its config has {key}={value}; at most {largest:g} is allowed")
    check_integers(config, where)


@contextlib.contextmanager
def limit_parameters(most: int) -> Iterator[None]:
    """Stop building modules when they have registered more parameters."""
    count = itertools.count(1)

    def check_count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if next(count) > most:
            raise ValueError(f"its config describes more than {most} tensors, far more than the file has")

    hook = register_module_parameter_registration_hook(check_count)
    try:
        yield
    finally:
        hook.remove()

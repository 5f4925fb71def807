"""Finds operations that would wait for the device: the meta device stands for a GPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WaitError(AssertionError):
    """An operation reads values of the device, or copies without `non_blocking`."""


class NoWaiting(TorchDispatchMode):
    """Refuses operations that mix tensors of CPU and device, such as an index on the CPU, and copies that block.

    An operation that reads a value (`item`, `bool`, `tolist`, `nonzero`) fails on the meta device by itself.
    """

    def __torch_dispatch__(self, operation: Any, types: Any, args: Iterable = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = [torch.device(kwargs["device"])] if kwargs.get("device") is not None and tensors else []
        devices = {tensor.device.type for tensor in tensors if tensor.ndim} | {device.type for device in target}
        is_copy = operation.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        non_blocking = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
        if len(devices) > 1 and not (is_copy and non_blocking):
            raise WaitError(f"{operation} of tensors on {' and '.join(sorted(devices))}")
        return operation(*args, **kwargs)

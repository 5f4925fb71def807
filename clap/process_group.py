"""The processes of one run, and what they exchange on the CPU. A process without a group is rank 0 of one."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several that run together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this is rank 0, which owns the run folder and is the only one that writes."""
    return rank() == 0


def gather_objects(value: Any) -> list[Any]:
    """The value of each rank, on every rank; collective, as all functions below."""
    values = [value] * world_size()
    if is_distributed():
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The value of rank 0, on every rank."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_numbers(numbers: Sequence[int]) -> Tensor:
    """The numbers of each rank (ranks, numbers) int64, without a synchronisation of the device."""
    own = torch.tensor(numbers, dtype=torch.int64)
    rows = [torch.empty_like(own) for _ in range(world_size())] if is_distributed() else [own]
    if is_distributed():
        dist.all_gather(rows, own)
    return torch.stack(rows)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on a rank."""
    return bool(gather_numbers([flag]).any())

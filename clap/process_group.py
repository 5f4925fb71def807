"""The processes of one run, and what they exchange on the CPU. A process without a group is rank 0 of one."""

import contextlib
import gc
import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clap.processes import PeerError, Processes, ignore_signals

log = logging.getLogger(__name__)
# How long a process waits for the others: in a collective, whose work may be a validation on rank 0, and at the start.
TIMEOUT, START_TIMEOUT = timedelta(minutes=30), timedelta(minutes=5)
LOST_PEER = re.compile(r"gloo/|ncclRemoteError|NCCL (communicator|error)|Connection (closed|reset) by peer")
_stores: list[dist.Store] = []  # that of the group which this process has joined


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


def on_main(function: Callable[[], Any]) -> Any:
    """What a function returns on rank 0, on every rank."""
    return broadcast_object(function() if is_main() else None)


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


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, on its device."""
    if not is_distributed():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def wait_for_all() -> None:
    """Return when every rank has called it."""
    gather_numbers([0])  # gloo does not wait for tensors without values


def reduce_max(values: Tensor) -> None:
    """Replace values by their maximum over the ranks, on their device and without waiting for it."""
    if is_distributed():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)


def connect(processes: Processes) -> dist.Store:
    """The store that all processes of a run share: that of torchrun's agent, else of rank 0.

    Raises:
        ConnectionError: the other processes, or the machine of rank 0, cannot be reached within START_TIMEOUT.
    """
    variables = {"MASTER_ADDR": processes.address, "MASTER_PORT": processes.port}
    variables |= {"RANK": processes.rank, "WORLD_SIZE": processes.world_size}
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=START_TIMEOUT))
    except (dist.DistError, RuntimeError) as error:
        raise ConnectionError(
            f"rank {processes.rank} of {processes.world_size} cannot reach {processes.address}:{processes.port} "
            f"({str(error).splitlines()[0]}); start all processes at the same time, or set another MASTER_PORT"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # after a restart of torchrun the store is the same
    return dist.PrefixStore(f"clap/{attempt}", store)


@contextlib.contextmanager
def join(processes: Processes, store: dist.Store) -> Iterator[None]:
    """Make this process one of a group while the body runs: gloo on a CPU, and NCCL for tensors on a GPU.

    After an exception all that the body has left is freed: else the connections stay open, and others wait for them.

    Raises:
        PeerError: another process has failed, see `share_failure`.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _stores.append(store)
    try:
        dist.init_process_group(
            backend, store=store, rank=processes.rank, world_size=processes.world_size, timeout=TIMEOUT
        )
        with share_failure():
            yield
    except BaseException as error:
        _free_frames(error)
        if dist.is_initialized() and torch.cuda.is_available():  # a kernel of NCCL would wait for the other processes
            dist.distributed_c10d._abort_process_group()
        raise
    finally:
        _stores.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def _free_frames(error: BaseException) -> None:
    """Free the objects in the frames of an exception that have ended; its traceback becomes a note."""
    error.__notes__ = ["".join(traceback.format_exception(error)).rstrip()]
    while error is not None:
        _cut_traceback(error)
        error = error.__cause__ or error.__context__
    gc.collect()


def _cut_traceback(error: BaseException) -> None:
    """Remove the frames that have ended: a frame keeps its function and the variables of a closure also if cleared."""
    running, entry = None, error.__traceback__
    while entry is not None:
        try:
            entry.tb_frame.clear()
        except RuntimeError:  # it still runs
            running, entry = entry, entry.tb_next
        else:
            break
    if running is None:
        error.__traceback__ = None
    else:
        running.tb_next = None


@contextlib.contextmanager
def share_failure() -> Iterator[None]:
    """Store why the body fails on this rank; if it fails because another rank has, raise the error of that one instead.

    What the body enters after this, such as an MLflow run, then ends with the error of the rank that failed first.

    Raises:
        PeerError: another rank has failed. KeyboardInterrupt: another rank was interrupted.
    """
    try:
        yield
    except PeerError:
        raise
    except BaseException as error:
        if not _stores:
            raise
        ignore_signals()  # the launcher sends one when the first process has ended
        first = _store_failure(error)
        if first is None:
            raise PeerError(
                "another process of this run has ended without a message, most likely killed because the memory was "
                f"full ({str(error).splitlines()[0]}); lower dataset.batch_size, dataset.num_workers or "
                "dataset.max_duration"
            ) from error
        is_own = first["rank"] == rank() or not (is_lost_peer(error) or isinstance(error, KeyboardInterrupt))
        if is_own:
            raise
        if first["interrupted"]:
            raise KeyboardInterrupt from error
        failure = PeerError(f"rank {first['rank']}: {first['error']}")
        failure.add_note(f"{failure}, with this traceback:\n{first['traceback']}")
        raise failure from error


def _store_failure(error: BaseException) -> dict[str, Any] | None:
    """Store an error unless another rank has stored one or is the cause; return the first; None if it is not known."""
    store, key = _stores[-1], "failure"
    own = {
        "rank": rank(),
        "error": f"{type(error).__name__}: {error}",
        "interrupted": isinstance(error, KeyboardInterrupt),
        "traceback": "".join(traceback.format_exception(error)),
    }
    try:
        if is_lost_peer(error):
            return json.loads(store.get(key)) if store.check([key]) else None
        return json.loads(store.compare_set(key, "", json.dumps(own)))
    except dist.DistError:  # the process that had the store has ended
        return None if is_lost_peer(error) else own


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception only says that another process has left the group."""
    return isinstance(error, dist.DistError | RuntimeError) and bool(LOST_PEER.search(str(error)))


def set_threads(processes: Processes) -> int:
    """Divide the cores of this machine over its processes, and return the number of threads of each.

    torchrun sets OMP_NUM_THREADS=1, which leaves cores unused; another value, or one set without torchrun, is kept.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given is None or (given == "1" and processes.launcher == "torchrun"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(cores // processes.local_world_size, 1))
    return torch.get_num_threads()

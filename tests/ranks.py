"""Runs a function in several processes that form a process group (gloo), forked from the tests."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

FORKS = multiprocessing.get_context("fork")


def run_ranks(function: Callable[[int], Any], world_size: int = 2, *, timeout: float = 60.0) -> list[Any]:
    """Results of `function(rank)` by rank; of a rank that raises an error, the ValueError or RuntimeError."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [FORKS.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            FORKS.Process(target=join, args=(function, rank, world_size, f"{folder}/rendezvous", pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        try:
            for process in processes:
                process.start()
            return [receive(pipe[0], timeout) for pipe in pipes]
        finally:
            for process in processes:
                process.kill()
                process.join()


def receive(pipe: Connection, timeout: float) -> Any:
    if not pipe.poll(timeout):
        raise TimeoutError(f"a rank did not end within {timeout} s")
    result = pickle.loads(pipe.recv_bytes())
    if isinstance(result, str):
        raise AssertionError(result)
    return result[0]


def join(function: Callable[[int], Any], rank: int, world_size: int, file: str, pipe: Connection) -> None:
    """Form the group, call the function and send (result,), or the traceback of an unexpected error."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    try:
        result = (function(rank),)
    except (ValueError, RuntimeError) as error:
        result = (error,)
    except BaseException:  # noqa: BLE001
        result = traceback.format_exc()
    pipe.send_bytes(pickle.dumps(result))  # not as shared memory, which ends with this process
    dist.barrier()  # an earlier exit would be an error of the other ranks

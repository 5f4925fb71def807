"""Several processes that run a task together: rank 0 runs Hydra, and sends each job to the other ranks.

They exchange jobs through a store, which needs no group, and join a group for each job: one that fails on a rank leaves
none of its messages to the next.
"""

import contextlib
import functools
import logging
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig, OmegaConf, SCMode

from clap import process_group
from clap.processes import PeerError, Processes, raise_first_signal

log = logging.getLogger(__name__)
Task = Callable[[DictConfig], Any]
POLL_SECONDS = 0.1
# For rank 0 to report the error of another rank; for all to join a job; for the others to read that rank 0 ends.
REPORT_SECONDS, JOIN_SECONDS, END_SECONDS = 20.0, 60.0, 5.0


class Ranks:
    """The other processes of a run, as this one sees them.

    Args:
        arguments: of the command line, which must be the same in all processes.

    Raises:
        ConnectionError: the other processes cannot be reached.
    """

    def __init__(self, processes: Processes, arguments: Sequence[str]) -> None:
        self.processes, self.arguments = processes, list(arguments)
        self.num_threads = process_group.set_threads(processes)
        self.store = process_group.connect(processes)
        self.num_messages = 0

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0, around all jobs: the other ranks end with the body."""
        status = 1
        try:
            yield
            status = 0
        finally:
            with contextlib.suppress(dist.DistError):  # torchrun has been killed
                self.send(status)
            if self.processes.launcher != "torchrun":  # rank 0 has the store
                others = range(1, self.processes.world_size)
                self.wait_for([f"ended/{rank}" for rank in others], END_SECONDS)

    def lead(self, task: Task) -> Task:
        """On rank 0: a task that the other ranks run too."""

        @functools.wraps(task)
        def run(config: DictConfig) -> Any:
            hydra = OmegaConf.to_container(HydraConfig.instance().cfg, structured_config_mode=SCMode.DICT)
            self.send((OmegaConf.to_container(config, resolve=True), hydra, self.arguments))
            own = self.processes
            log.info(
                "%d processes on %d machine(s), %d threads each", own.world_size, own.num_machines, self.num_threads
            )
            with self.joined():
                return task(config)

        return run

    def follow(self, task: Task) -> int:
        """On another rank: run the jobs of rank 0 until it ends; returns its exit status.

        This rank has no log file, and logs errors only. Rank 0 reports its exceptions.
        """
        label = f"rank {self.processes.rank}"
        logging.basicConfig(level=logging.ERROR, format=f"[{label}] %(levelname)s: %(message)s", force=True)
        logging.captureWarnings(True)
        try:
            return self.run_jobs(task, label)
        finally:
            self.set(f"ended/{self.processes.rank}")

    def run_jobs(self, task: Task, label: str) -> int:
        while not isinstance(message := self.receive(), int):
            config, hydra, arguments = message
            try:
                HydraConfig.instance().cfg = OmegaConf.create(hydra)
                with env_override(hydra["hydra"]["job"]["env_set"]), self.joined():
                    if arguments != self.arguments:
                        raise ValueError(
                            f"{label} was started with {' '.join(self.arguments)}, rank 0 with {' '.join(arguments)}; "
                            "start all processes with the same arguments"
                        )
                    task(OmegaConf.create(config))
            except PeerError:
                continue
            except Exception:
                if not self.wait_for([f"left/{self.num_messages}/0"], REPORT_SECONDS):
                    raise
        return message

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """The group of a job."""
        if self.processes.launcher != "submitit":  # which has signal handlers of its own
            raise_first_signal()
        job, ranks = self.num_messages, range(self.processes.world_size)
        self.set(f"joining/{job}/{self.processes.rank}")
        if not self.wait_for([f"joining/{job}/{rank}" for rank in ranks], JOIN_SECONDS):
            sys.exit("error: a process did not join this job, or did not end the one before; the same command resumes")
        try:
            with process_group.join(self.processes, dist.PrefixStore(f"job/{job}", self.store)):
                yield
        finally:
            self.set(f"left/{job}/{self.processes.rank}")

    def set(self, key: str) -> None:
        with contextlib.suppress(dist.DistError):  # the process that had the store has ended
            self.store.set(key, "")

    def send(self, message: Any) -> None:
        self.store.set(f"message/{self.num_messages + 1}", pickle.dumps(message))
        self.num_messages += 1

    def receive(self) -> Any:
        """The next message of rank 0.

        Raises:
            ConnectionError: the process that has the store has ended.
        """
        self.num_messages += 1
        key = f"message/{self.num_messages}"
        try:
            while not self.store.check([key]):
                time.sleep(POLL_SECONDS)
            return pickle.loads(self.store.get(key))
        except dist.DistError as error:
            owner = "torchrun" if self.processes.launcher == "torchrun" else "rank 0"
            raise ConnectionError(f"{owner} has ended ({str(error).splitlines()[0]})") from error

    def wait_for(self, keys: list[str], seconds: float) -> bool:
        """Whether all keys are set within this time, or the process that has the store has ended."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(dist.DistError):
            while not self.store.check(keys):
                if time.monotonic() > deadline:
                    return False
                time.sleep(POLL_SECONDS)
        return True

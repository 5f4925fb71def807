"""The processes of a run, as torchrun, srun or submitit describe them in the environment; without torch."""

import functools
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 1.0  # between looks at a parent process
FIRST_PORT, NUM_PORTS = 20000, 40000  # of the address of a job without a port of its own


class PeerError(RuntimeError):
    """Another process of this run has failed; the message names its rank and its error."""


@dataclass(frozen=True)
class Processes:
    """This process and the number of all; one process without a launcher.

    Attributes:
        rank, local_rank: number of this process in the run and on its machine.
        world_size, local_world_size: number of processes in the run and on this machine.
        launcher: torchrun, srun or submitit; None if the variables RANK and WORLD_SIZE were set by something else.
        address, port: where the processes meet; of torchrun that of its agent, else of rank 0.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    launcher: str | None = None
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def num_machines(self) -> int:
        return -(-self.world_size // self.local_world_size)

    def command(self) -> list[str]:
        """The words in front of the script in a command that starts these processes."""
        nodes = [f"--nnodes={self.num_machines}" if self.num_machines > 1 else "--standalone"]
        if self.launcher == "torchrun":
            return ["torchrun", *nodes, f"--nproc-per-node={self.local_world_size}"]
        if self.launcher == "srun":
            return ["srun", f"--ntasks={self.world_size}", "python"]
        return ["python"]


def read_processes(variables: Mapping[str, str] = os.environ) -> Processes:
    """The processes that the environment variables of a launcher describe.

    Variables of torchrun come first: it may run inside of a job of SLURM. Of SLURM only those that srun sets for each
    process count, since a batch script has SLURM_NTASKS too.
    """
    if "RANK" in variables and "WORLD_SIZE" in variables:
        return _read_torchrun(variables)
    if variables.get("SUBMITIT_EXECUTOR") == "local":
        return _read_local_submitit(variables)
    if "SLURM_STEP_NUM_TASKS" in variables and "SLURM_PROCID" in variables:
        return _read_slurm(variables)
    return Processes()


def _read_torchrun(variables: Mapping[str, str]) -> Processes:
    number = {name: int(variables[name]) for name in ("RANK", "WORLD_SIZE")}
    return Processes(
        rank=number["RANK"],
        local_rank=int(variables.get("LOCAL_RANK", number["RANK"])),
        world_size=number["WORLD_SIZE"],
        local_world_size=int(variables.get("LOCAL_WORLD_SIZE", number["WORLD_SIZE"])),
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in variables else None,
        address=variables.get("MASTER_ADDR", "127.0.0.1"),
        port=int(variables.get("MASTER_PORT", 29500)),  # torchrun's own default
    )


def _read_local_submitit(variables: Mapping[str, str]) -> Processes:
    """Processes of submitit on this machine; the number of their job is the id of a process."""
    rank, world_size = (int(variables[f"SUBMITIT_LOCAL_{name}"]) for name in ("GLOBALID", "NTASKS"))
    port = _choose_port(variables, int(variables["SUBMITIT_LOCAL_JOB_ID"]))
    return Processes(rank, rank, world_size, world_size, launcher="submitit", port=port)


def _read_slurm(variables: Mapping[str, str]) -> Processes:
    """Processes of srun, which submitit uses too."""
    rank, local_rank, world_size = (int(variables[f"SLURM_{name}"]) for name in ("PROCID", "LOCALID", "STEP_NUM_TASKS"))
    nodes = int(variables.get("SLURM_STEP_NUM_NODES", 1))
    step = int(variables.get("SLURM_JOB_ID", 0)) + int(variables.get("SLURM_STEP_ID", 0))
    return Processes(
        rank,
        local_rank,
        world_size,
        -(-world_size // nodes),
        launcher="submitit" if "SUBMITIT_EXECUTOR" in variables else "srun",
        address=variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        port=_choose_port(variables, step),
    )


def _choose_port(variables: Mapping[str, str], job: int) -> int:
    """MASTER_PORT, or a port that depends on the number of a job, so that two jobs of a machine rarely share it."""
    return int(variables.get("MASTER_PORT") or FIRST_PORT + job % NUM_PORTS)


def first_host(nodes: str) -> str:
    """The first machine of a list of SLURM: `gpu[003-006,9],cpu1` gives gpu003."""
    prefix, number, suffix = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes).groups()
    return f"{prefix}{number or ''}{suffix}"


def check_batch_size(batch_size: int, world_size: int) -> None:
    """ValueError unless the processes divide dataset.batch_size, which is the batch of all of them."""
    if rest := batch_size % world_size:
        near = [size for size in (batch_size - rest, batch_size - rest + world_size) if size]
        raise ValueError(
            f"dataset.batch_size={batch_size} is the batch of all {world_size} processes and must be a multiple of "
            f"{world_size}; set it to {' or '.join(map(str, near))}"
        )


def check_parallel(parallel: str, world_size: int) -> None:
    """ValueError if `trainer.parallel` needs several processes."""
    if parallel == "fsdp" and world_size == 1:
        raise ValueError(
            "trainer.parallel=fsdp shards the text encoder over several processes, and this is one; start it with "
            "torchrun, or set trainer.parallel=ddp"
        )


def raise_first_signal() -> None:
    """Make the first Ctrl-C or SIGTERM raise KeyboardInterrupt, and ignore further ones.

    A process of several receives the signal from the terminal and from its launcher, which kills it after a time of its
    own: torchrun after 30 s, SLURM after its KillWait.
    """

    def interrupt(number: int, frame: object) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)


@functools.cache
def watch_parent(parent_pid: int) -> None:
    """Send SIGTERM to this process, once, when its parent has ended, as a sweep or a torchrun that is killed."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM, while a process that is ending reports why."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

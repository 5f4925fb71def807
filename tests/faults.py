"""train.py with a fault in one process: the variable FAULT names its rank and a function, as in `1 kill`."""

import errno
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clap.dataset.clips import ClapDataset
from clap.training import trainer as training
from clap.training.objective import Objective
from clap.training.parallel import GatherRows
from clap.training.trainer import ClapTrainer

ROOT = Path(__file__).resolve().parents[1]
STEP = 8  # of the fault; it is in the second epoch
PAUSE = 3.0  # seconds in which a test sends a signal


def before(method: str, action: Callable[[ClapTrainer], None]) -> None:
    """Call `action` before a method of the trainer, at the first call from STEP on."""
    original = getattr(ClapTrainer, method)

    def call(self: ClapTrainer, *args: object) -> object:
        if self.step >= STEP:
            setattr(ClapTrainer, method, original)
            action(self)
        return original(self, *args)

    setattr(ClapTrainer, method, call)


def kill() -> None:
    before("train_step", lambda trainer: os.kill(os.getpid(), signal.SIGKILL))


def kill_in_saving() -> None:
    before("save", lambda trainer: os.kill(os.getpid(), signal.SIGKILL))


def kill_in_evaluation() -> None:
    before("evaluate", lambda trainer: os.kill(os.getpid(), signal.SIGKILL))


def kill_worker() -> None:
    """A process that loads data is killed, as by the system when the memory is full."""
    before("train_step", lambda trainer: multiprocessing.active_children()[0].kill())


def terminate() -> None:
    before("train_step", lambda trainer: os.kill(os.getpid(), signal.SIGTERM))


def fill_disk() -> None:
    write_state = training.write_state

    def write(folder: Path, state: dict) -> None:
        write_state(folder, state)
        if state["position"]["step"] > STEP:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    training.write_state = write


def break_evaluation() -> None:
    def fail(trainer: ClapTrainer) -> None:
        raise ValueError("an evaluator without a result")

    before("evaluate", fail)


def break_loss() -> None:
    """The loss of this rank is nan once."""
    forward = Objective.forward

    def forward_once(self: Objective, *args: object) -> tuple:
        loss, compute_gradients = forward(self, *args)
        self.count = getattr(self, "count", 0) + 1
        return (loss * float("nan") if self.count == STEP else loss), compute_gradients

    Objective.forward = forward_once


def break_gradient() -> None:
    """A gradient of this rank is infinite once."""

    def fail(trainer: ClapTrainer) -> None:
        parameter = trainer.clap.audio_projection.parameters().__next__()
        hook = parameter.register_hook(lambda gradient: (hook.remove(), gradient / 0)[1])

    before("train_step", fail)


def break_backward() -> None:
    """An error in the middle of a backward pass, while the other rank waits for gradients of this one."""
    backward = GatherRows.backward

    def fail(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        result = backward(ctx, gradient)
        if armed:
            raise RuntimeError("a backward pass that fails")
        return result

    armed: list[bool] = []
    GatherRows.backward = staticmethod(fail)
    before("train_step", lambda trainer: armed.append(True))


def skip_clips() -> None:
    """Every fourth clip that this rank loads cannot be read."""
    read = ClapDataset.__getitem__

    def read_some(self: ClapDataset, key: tuple[int, int]) -> object:
        item = read(self, key)
        is_bad = self.training and item.index % 4 == 0
        return replace(item, problem=f"{self.clips[item.index].id}: cannot be read") if is_bad else item

    ClapDataset.__getitem__ = read_some


def pause(method: str) -> Callable[[], None]:
    """Wait before a method of the trainer, after writing a file that a test waits for."""

    def wait(trainer: ClapTrainer) -> None:
        (trainer.checkpoints.parent / f"paused-{os.environ.get('RANK', 0)}").touch()
        deadline = time.monotonic() + PAUSE
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(left)

    return lambda: before(method, wait)


pause_in_training, pause_in_evaluation, pause_in_saving = pause("train_step"), pause("evaluate"), pause("save")


if __name__ == "__main__":
    rank, _, fault = os.environ.get("FAULT", "").partition(" ")
    if rank in (os.environ.get("RANK", "0"), "all"):
        globals()[fault]()
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")

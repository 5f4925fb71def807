"""A trace of a few training steps by PyTorch's profiler (`trainer.profile`)."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import profile, schedule

from clap.process_group import is_main

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)
WAIT, WARMUP, ACTIVE = 4, 1, 5  # steps before the profiler starts, that it discards, and of the trace
TOP = 10  # operations in the log


@contextmanager
def profile_steps(trainer: "ClapTrainer") -> Iterator[None]:
    """Trace a few steps of the training inside, on rank 0; of a shorter training those that there are.

    The trace, profile/trace.json.gz in the run folder, is an artifact of the run.
    """
    if not (trainer.settings.profile and is_main()):
        yield
        return
    steps = trainer.settings.num_steps(trainer.train_loader) - trainer.step
    active = min(ACTIVE, max(steps - WARMUP, 1))
    warmup = min(WARMUP, max(steps - active, 0))
    wait = min(WAIT, max(steps - active - warmup, 0))
    plan = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    path = trainer.checkpoints.parent / "profile" / "trace.json.gz"
    on_ready = functools.partial(write_trace, trainer, path)
    with profile(schedule=plan, on_trace_ready=on_ready, acc_events=True) as profiler:
        hook = trainer.optimizer.register_step_post_hook(lambda *_: end_step(trainer, profiler))
        try:
            yield
        finally:
            hook.remove()


def end_step(trainer: "ClapTrainer", profiler: profile) -> None:
    """Start, continue or end the trace; the time of the profiler is not counted as that of the training."""
    trainer.meter.clock.lap("optimizer")
    with trainer.meter.train_time.paused():
        profiler.step()
    trainer.meter.clock.restart()


def write_trace(trainer: "ClapTrainer", path: Path, profiler: profile) -> None:
    """Write a trace, log its top operations, and send it to MLflow."""
    path.parent.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(path))
    log.info("a trace of training steps is in %s; most time by operation:\n%s", path, top_operations(profiler))
    if trainer.tracker is not None:
        trainer.tracker.log_artifact(path.parent)


def top_operations(profiler: profile) -> str:
    """A table of the operations with the most time on the GPU, or on the CPU without one."""
    events = profiler.key_averages()
    on_gpu = any(event.self_device_time_total for event in events)
    seconds = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6 for e in events}
    counts, total = {event.key: event.count for event in events}, sum(seconds.values()) or 1.0
    top = sorted(seconds, key=seconds.get, reverse=True)[:TOP]
    lines = [f"{1000 * seconds[key]:9.1f} {seconds[key] / total:6.1%} {counts[key]:7d}  {key[:70]}" for key in top]
    return "\n".join([f"{'ms':>9} {'share':>6} {'calls':>7}  operation", *lines])

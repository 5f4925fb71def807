"""Ctrl-C and SIGTERM end training after the current step; a worker process ends with the sweep that started it."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from clap.processes import STOP_SIGNALS, read_processes, watch_parent

log = logging.getLogger(__name__)


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list to which Ctrl-C or SIGTERM appends its number; a second one raises KeyboardInterrupt at once.

    Of several processes each receives the signal twice, from the terminal and from its launcher, which kills a process
    that has not ended after 30 s (torchrun) or the KillWait of SLURM: further signals are ignored.
    """
    received: list[int] = []
    several = read_processes().world_size > 1

    def append_signal(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            log.warning("stopping after this step%s", "" if several else "; a second signal stops at once")
        elif not several:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, append_signal) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread, as in some notebooks and launchers
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received and several else handler)


@contextmanager
def end_with_parent() -> Iterator[None]:
    """In a worker process: if its parent is killed, stop the body as SIGTERM does, and exit.

    A joblib worker would otherwise run the jobs that it has received, and then wait forever.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    parent_pid = os.getppid()  # that of the fork server, where there is one
    watch_parent(parent_pid)
    try:
        yield
    finally:
        if os.getppid() != parent_pid:
            os._exit(1)

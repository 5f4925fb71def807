"""Ctrl-C and SIGTERM end training after the current step."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list to which Ctrl-C or SIGTERM appends its number; a second one raises KeyboardInterrupt at once."""
    received: list[int] = []

    def append_signal(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("stopping after this step; a second signal stops at once")

    try:
        before = {number: signal.signal(number, append_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, as in some notebooks and launchers
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

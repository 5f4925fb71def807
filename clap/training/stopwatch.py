"""A stopwatch that can be paused, for the time of training over all resumes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class Stopwatch:
    """Adds up the seconds inside of `running` and outside of `paused`.

    Attributes:
        before: seconds that are already counted, also those before a resume.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextmanager
    def running(self, on: bool = True) -> Iterator[None]:
        """Count the seconds of a block; afterwards the watch is running or paused as before."""
        was_on = self._since is not None
        self._switch(on)
        try:
            yield
        finally:
            self._switch(was_on)

    def paused(self) -> AbstractContextManager[None]:
        """Do not count the seconds of a block."""
        return self.running(on=False)

    def _switch(self, on: bool) -> None:
        self.before, self._since = self.seconds, time.perf_counter() if on else None

"""Clocks of a training: of its time over all resumes, and of the parts of its steps."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

PARTS = ("data", "forward_backward", "optimizer")  # of a training step


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


class StepClock:
    """Adds up the seconds of the parts of training steps; on a GPU those of its work, without waiting for it.

    A part of a GPU's time ends when the GPU has finished what was launched until then. In `data` it waits for a batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._laps: deque[tuple[str, Moment, Moment]] = deque()  # part, start and end of those that a GPU has ahead
        self._last = self._record()

    def restart(self) -> None:
        """Count the time since the last lap for no part."""
        self._last = self._record()

    def lap(self, part: str) -> None:
        """Count the time since the last lap, or the restart after it, for a part."""
        start, self._last = self._last, self._record()
        self._laps.append((part, start, self._last))
        self._add_up()

    def read(self) -> dict[str, float]:
        """Seconds of each part so far, over all resumes; waits for the GPU."""
        self._last.synchronize()
        self._add_up()
        return dict(self.seconds)

    def _record(self) -> "Moment":
        moment = torch.cuda.Event(enable_timing=True) if self.device.type == "cuda" else HostEvent()
        moment.record()
        return moment

    def _add_up(self) -> None:
        while self._laps and self._laps[0][2].query():
            part, start, end = self._laps.popleft()
            self.seconds[part] += start.elapsed_time(end) / 1000


class HostEvent:
    """A moment by the clock of the host, with the methods of `torch.cuda.Event`."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "HostEvent") -> float:
        """Milliseconds from this moment to another."""
        return 1000 * (end.time - self.time)


Moment = HostEvent | torch.cuda.Event

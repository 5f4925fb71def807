"""When a validation or a checkpoint within an epoch is due: by steps, or by minutes."""

import time


class Interval:
    """Due every so many steps, or every so many minutes; None: not by these.

    A resumed run counts its minutes from its start.
    """

    def __init__(self, *, steps: int | None, minutes: float | None) -> None:
        self.steps, self.minutes = steps, minutes
        self.restart()

    def restart(self) -> None:
        """Count the minutes from now."""
        self.since = time.monotonic()

    def has_elapsed(self) -> bool:
        """Whether the minutes are over, by the clock of this process."""
        return self.minutes is not None and time.monotonic() - self.since >= 60 * self.minutes

    def is_due(self, step: int, *, elapsed: bool) -> bool:
        """Whether it is due after a step.

        Args:
            elapsed: `has_elapsed` of rank 0, which all ranks act on.
        """
        return elapsed or (self.steps is not None and step % self.steps == 0)

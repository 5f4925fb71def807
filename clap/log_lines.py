"""How log lines look: their beginning, aligned rows and columns, durations; warnings of libraries are log lines too."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

BODY = logging.Formatter("%(message)s")
# Libraries with handlers of their own, which write to stderr.
LIBRARIES = ("alembic", "huggingface_hub", "mlflow", "transformers")


class LineFormatter(logging.Formatter):
    """Formats each line of a message by `format`, with the job of a sweep and a level above INFO in front of it.

    Args:
        fmt, datefmt, style: as of `logging.Formatter`; the layout of a line.
        job: name of the job; None outside of a sweep.
    """

    def __init__(
        self, fmt: str | None = None, datefmt: str | None = None, style: str = "%", *, job: str | None = None
    ) -> None:
        super().__init__(fmt, datefmt, style)
        self.job = job

    def format(self, record: logging.LogRecord) -> str:
        job = f"[{self.job}] " if self.job is not None else ""
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        fields = vars(record) | {"args": None, "exc_info": None, "exc_text": None, "stack_info": None}
        lines = BODY.format(record).splitlines() or [""]
        records = [logging.makeLogRecord(fields | {"msg": f"{job}{level}{line}"}) for line in lines]
        return "\n".join(map(super().format, records))


def name_job(job: str | None, handler: logging.Handler) -> None:
    """Put the name of a job in front of the lines of a handler."""
    layout = handler.formatter
    fmt, datefmt = (layout._fmt, layout.datefmt) if layout is not None else (None, None)
    handler.setFormatter(LineFormatter(fmt, datefmt, job=job))


def route_libraries() -> None:
    """Let the lines of libraries go where the others go, after the libraries are imported."""
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True


@contextmanager
def log_warnings() -> Iterator[None]:
    """Log what `warnings.warn` reports in the body, each in one line, instead of writing it to stderr."""
    before, warnings.formatwarning = warnings.formatwarning, format_warning
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.formatwarning = before


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{' '.join(str(message).split())} ({category.__name__}, {filename}:{lineno})"


def align_rows(rows: Mapping[str, str]) -> str:
    """A line for each row, with its name in front; the texts begin in one column."""
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def align_columns(rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """A line for each row, columns of one width.

    Args:
        numbers: positions of the columns that are aligned at the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [">" if place in numbers else "<" for place in range(len(widths))]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(layout.format(*row).rstrip() for row in rows)


def format_duration(seconds: float) -> str:
    """`8.2 s`, `42 s`, `7 min`, `3 h 20 min` or `2 d 5 h`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"

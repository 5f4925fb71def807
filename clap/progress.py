"""Progress bars: on a terminal only, and only in one of the processes that share it; log lines go above them."""

import logging
import multiprocessing
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clap.processes import read_processes


def progress_bar(items: Iterable | None = None, *, hidden: bool = False, **options: Any) -> tqdm:
    """A tqdm bar over items, or one that `update` moves.

    Args:
        hidden: show no bar on a terminal either.
        options: of tqdm, such as total, desc and unit.
    """
    return tqdm(items, disable=hidden or not shows_bars(), **options)


def shows_bars() -> bool:
    """Whether stderr is a terminal, and this process the one that draws on it."""
    is_worker = multiprocessing.current_process().name != "MainProcess" or read_processes().rank > 0
    return not is_worker and sys.stderr is not None and sys.stderr.isatty()


def log_above_bars() -> AbstractContextManager[None]:
    """Print the log lines of the body above progress bars; without logging to the console nothing changes."""
    streams = [getattr(handler, "stream", None) for handler in logging.getLogger().handlers]
    return logging_redirect_tqdm() if sys.stdout in streams or sys.stderr in streams else nullcontext()

"""What the processes of one run exchange."""

import time
import weakref

import pytest
import torch.distributed as dist
from ranks import run_ranks

from clap.process_group import join, wait_for_all
from clap.processes import Processes


class Connection:
    """An object of a run that others wait for."""


def test_failed_job_keeps_no_objects_and_its_traceback():
    references = []

    def fail() -> None:
        connection = Connection()
        references.append(weakref.ref(connection))

        def use() -> None:
            raise ValueError(f"{type(connection).__name__} lost")

        use()

    with pytest.raises(ValueError, match="Connection lost") as caught, join(Processes(), dist.HashStore()):
        fail()
    assert references[0]() is None
    assert 'raise ValueError(f"{type(connection)' in caught.value.__notes__[0]


def test_every_rank_waits_for_the_slowest():
    def wait(rank: int) -> float:
        time.sleep(0.3 * rank)
        start = time.monotonic()
        wait_for_all()
        return time.monotonic() - start

    first, _ = run_ranks(wait)
    assert first > 0.2

"""What the processes of one run exchange."""

import weakref

import pytest
import torch.distributed as dist

from clap.process_group import join
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

"""Each process of a machine has its own GPU."""

import pytest
import torch

from clap.device import choose_device


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Four GPUs; the devices that have been set as the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("WORLD_SIZE", "8")
    return chosen


def test_process_has_the_gpu_of_its_local_rank(four_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "6")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_device("auto") == torch.device("cuda", 2)
    assert four_gpus == [torch.device("cuda", 2)]
    assert choose_device("cpu") == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(four_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "6")
    with pytest.raises(ValueError, match="8 processes on a machine with 4 GPUs; .* --nproc-per-node=4"):
        choose_device("auto")

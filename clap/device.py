"""The device of a run."""

import torch


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch finds no GPU here; set device=cpu or auto")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")

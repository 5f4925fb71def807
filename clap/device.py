"""Choice of the device."""

import torch


def choose_device(name: str) -> torch.device:
    """The device `cpu` or `cuda`; `auto` is the GPU if one is available."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r} is not one of auto, cpu, cuda; set device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch finds no GPU; set device=cpu or auto")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")

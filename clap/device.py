"""Choice of the device, its description, and the random seed."""

import os

import torch

from clap.config.values import DEVICES


def choose_device(name: str) -> torch.device:
    """The device `cpu` or `cuda`; `auto` is the GPU if one is available."""
    if name not in DEVICES:
        raise ValueError(f"device={name!r} is not one of {', '.join(DEVICES)}; set device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch finds no GPU; set device=cpu or auto")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")


def describe_machine(device: torch.device) -> str:
    """The machine of a run, as `2 CPU cores, torch 2.11.0`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cores} CPU cores"
    return f"{name}, torch {torch.__version__}"


def set_seed(seed: int) -> None:
    """Seed PyTorch's random numbers on all devices; loaders have generators of their own."""
    torch.manual_seed(seed)

"""Choice of the device, its description, and the random seed."""

import os

import torch

from clap.config.values import DEVICES
from clap.process_group import world_size
from clap.processes import read_processes


def choose_device(name: str) -> torch.device:
    """The device `cpu` or `cuda`; `auto` is the GPU if one is available. Each process of a machine has its own GPU.

    Raises:
        ValueError: the name is unknown, or there is no GPU, or not one for each process.
    """
    if name not in DEVICES:
        raise ValueError(f"device={name!r} is not one of {', '.join(DEVICES)}; set device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch finds no GPU; set device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    processes, count = read_processes(), torch.cuda.device_count()
    if processes.local_world_size == 1:
        return torch.device("cuda")
    is_bound = count == 1 and processes.launcher in ("srun", "submitit")  # to one GPU, by --gpus-per-task
    if processes.local_rank >= count and not is_bound:
        raise ValueError(
            f"{processes.local_world_size} processes on a machine with {count} GPUs; start one process for each GPU, "
            f"as with torchrun --nproc-per-node={count}, or set device=cpu"
        )
    device = torch.device("cuda", 0 if is_bound else processes.local_rank)
    torch.cuda.set_device(device)
    return device


def describe_machine(device: torch.device) -> str:
    """The machine of a run, as `2 CPU cores, torch 2.11.0`, or `8 processes, NVIDIA H100, torch 2.11.0`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cores} CPU cores"
    processes = f"{world_size()} processes, " if world_size() > 1 else ""
    return f"{processes}{name}, torch {torch.__version__}"


def set_seed(seed: int) -> None:
    """Seed PyTorch's random numbers on all devices; loaders have generators of their own."""
    torch.manual_seed(seed)

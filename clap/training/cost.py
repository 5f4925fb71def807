"""What a model costs: memory, parameters, arithmetic."""

import os
import re
import resource
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from clap.model import Clap


def measure(clap: Clap) -> dict[str, float]:
    """Peak memory of this process in bytes, parameters, and gigaflops of one clip and caption forward."""
    parts = {"": clap, "audio_encoder_": clap.audio_encoder, "text_encoder_": clap.text_encoder}
    cost = {
        "peak_memory_bytes": peak_memory(),
        **{f"{name}parameters": sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "trainable_parameters": sum(p.numel() for p in clap.parameters() if p.requires_grad),
        "gigaflops_per_clip": round(count_flops(clap) / 1e9, 3),
    }
    if torch.cuda.is_available():
        cost["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return cost


def describe_machine(device: torch.device) -> str:
    """What a run ran on, as `2 CPU cores, torch 2.11.0`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cores} CPU cores"
    return f"{name}, torch {torch.__version__}"


def reset_peak_memory() -> None:
    """Let the peaks count from here, so that the jobs of one process do not inherit each other's."""
    with suppress(OSError):  # other systems than Linux count from the start of the process
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Bytes of this process, without its loader workers."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def count_flops(clap: Clap) -> int:
    """Of a clip as long as the window and a caption of sixteen tokens: products and sums, without the spectrogram."""
    frontend = clap.audio_encoder.frontend
    waveform = torch.zeros(1, frontend.num_samples, device=clap.device)
    tokens = torch.ones(1, 16, dtype=torch.long, device=clap.device)
    with clap.inference(), FlopCounterMode(display=False) as counter:
        clap(waveform, torch.tensor([frontend.num_samples], device=clap.device), tokens, tokens)
    return counter.get_total_flops()

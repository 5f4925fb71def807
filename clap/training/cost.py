"""The cost of training: memory, parameters, arithmetic."""

import re
import resource
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from clap.audio_encoder.base import LogMelEncoder
from clap.fusion import MeanOfWindows, Views, window_starts
from clap.model import Clap

CAPTION_TOKENS = 20  # in a counted training step


def measure_size(clap: Clap, *, duration: float) -> dict[str, float]:
    """Parameters of a model and its encoders, and gigaflops of the forward pass of a clip of `duration` seconds."""
    parts = {"": clap, "audio_encoder_": clap.audio_encoder, "text_encoder_": clap.text_encoder}
    return {
        **{f"{name}parameters": sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "trainable_parameters": sum(p.numel() for p in clap.parameters() if p.requires_grad),
        "gigaflops_per_clip": round(forward_flops(clap, duration=duration) / 1e9, 3),
    }


def measure_peaks(before: Mapping[str, int]) -> dict[str, int]:
    """Peak memory of this process in bytes, and of its GPU if there is one; at least the peaks before a resume."""
    peaks = {"peak_memory_bytes": peak_memory()}
    if torch.cuda.is_available():
        peaks["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return {name: max(peak, before.get(name, 0)) for name, peak in peaks.items()}


def reset_peak_memory() -> None:
    """Reset the peaks, so that a job does not inherit those of earlier jobs in its process."""
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


def forward_flops(clap: Clap, *, duration: float | None = None) -> int:
    """FLOPs of a clip and a caption of sixteen tokens, without the STFT.

    Args:
        duration: seconds of the clip, which the fusion cuts into windows or views as in training; None: the window.
    """
    num_samples = round((duration or clap.audio_encoder.window) * clap.sample_rate)
    waveform = torch.zeros(1, num_samples, device=clap.device)
    tokens = torch.ones(1, 16, dtype=torch.long, device=clap.device)
    with clap.inference():
        return count_flops(lambda: clap(waveform, torch.tensor([num_samples], device=clap.device), tokens, tokens))


def step_flops(clap: Clap, *, batch_size: int, max_duration: float) -> int:
    """FLOPs of a training step on the meta device, forward and backward, without the spectrogram.

    Args:
        max_duration: seconds that training reads of a clip.
    """
    encoder = clap.audio_encoder.eval()
    tokens = torch.ones(batch_size, CAPTION_TOKENS, dtype=torch.long, device="meta")

    def step() -> None:
        if isinstance(encoder, LogMelEncoder):
            features = encoder.encode_views(make_meta_views(encoder, batch_size, max_duration))
        else:
            num_samples = round(encoder.window * encoder.sample_rate)
            lengths = torch.full((batch_size,), num_samples)
            features = encoder(torch.zeros(batch_size, num_samples, device="meta"), lengths)
        audio, text = clap.audio_projection(features), clap.embed_text(tokens, tokens.bool())
        (audio.sum() + text.sum()).backward()

    return count_flops(step)


def make_meta_views(encoder: LogMelEncoder, batch_size: int, max_duration: float) -> Views:
    """Views of clips of `max_duration` seconds, without values."""
    frontend, fusion = encoder.frontend, encoder.fusion
    longest = round(max_duration * frontend.sample_rate)
    windows = len(window_starts(longest, frontend.num_samples)) if isinstance(fusion, MeanOfWindows) else 1
    rows = batch_size * windows
    log_mel = torch.zeros(rows, fusion.num_views, frontend.num_frames, frontend.n_mels, device="meta")
    is_longer = torch.full((rows,), longest > frontend.num_samples and fusion.num_views > 1)  # encoders read its values
    return Views(log_mel, is_longer, torch.arange(rows))


def count_flops(call: Callable[[], object]) -> int:
    """Products and sums of the matrix multiplications, convolutions and attention in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()

"""The cost of training: memory, parameters, arithmetic."""

import math
import re
import resource
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from clap.audio_encoder.base import LogMelEncoder
from clap.audio_model import AudioModel
from clap.fusion import MeanOfWindows, Views, window_starts
from clap.training.precision import DTYPES

CAPTION_TOKENS = 20  # in a counted training step
PRODUCTS = 4  # matrix products between two readings of the clock


def measure_size(clap: AudioModel, *, duration: float) -> dict[str, float]:
    """Parameters of a model and its encoders, and gigaflops of the forward pass of a clip of `duration` seconds."""
    parts = {"": clap, "audio_encoder_": clap.audio_encoder}
    parts |= {} if clap.text_encoder is None else {"text_encoder_": clap.text_encoder}
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


def forward_flops(clap: AudioModel, *, duration: float | None = None) -> int:
    """FLOPs of a clip and, with a text encoder, of a caption of sixteen tokens, without the STFT.

    Args:
        duration: seconds of the clip, which the fusion cuts into windows or views as in training; None: the window.
    """
    num_samples = round((duration or clap.audio_encoder.window) * clap.sample_rate)
    waveform = torch.zeros(1, num_samples, device=clap.device)
    tokens = torch.ones(1, 16, dtype=torch.long, device=clap.device)
    texts = () if clap.text_encoder is None else (tokens, tokens)
    with clap.inference():
        return count_flops(lambda: clap(waveform, torch.tensor([num_samples]), *texts))


def step_flops(
    clap: AudioModel,
    *,
    batch_size: int,
    duration: float,
    num_tokens: int = CAPTION_TOKENS,
    skipped: Collection[str] = (),
) -> int:
    """FLOPs of a training step, forward and backward, without the spectrogram; nothing is computed or allocated.

    A part without gradients has no backward pass. Activations that are computed twice to save memory count once.

    Args:
        batch_size: clips of the step on this device.
        duration: seconds of the longest clip; shorter ones are padded.
        num_tokens: tokens of the longest caption.
        skipped: encoders that do not run, as their outputs are cached.
    """
    step = CountedStep(clap, skipped)
    shapes = {
        name: torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
        for name, value in [*step.named_parameters(), *step.named_buffers()]
    }
    modes = {module: module.training for module in clap.modules()}
    checkpointed = [module for module in modes if getattr(module, "grad_checkpointing", False)]  # timm's, in eval too
    try:
        clap.eval()
        for module in checkpointed:
            module.grad_checkpointing = False
        with torch.compiler.set_stance("force_eager"):
            return count_flops(lambda: functional_call(step, shapes, (batch_size, duration, num_tokens)))
    finally:
        for module, training in modes.items():
            module.training = training
        for module in checkpointed:
            module.grad_checkpointing = True


class CountedStep(nn.Module):
    """A training step on the meta device, without loss and optimizer."""

    def __init__(self, clap: AudioModel, skipped: Collection[str]) -> None:
        super().__init__()
        self.clap, self.skipped = clap, skipped

    def forward(self, batch_size: int, duration: float, num_tokens: int) -> None:
        encoder = self.clap.audio_encoder
        if "audio_encoder" in self.skipped:
            features = torch.zeros(batch_size, encoder.output_dim, device="meta")
        elif isinstance(encoder, LogMelEncoder):
            features = encoder.encode_views(make_meta_views(encoder, batch_size, duration))
        else:
            num_samples = round(encoder.window * encoder.sample_rate)
            lengths = torch.full((batch_size,), num_samples)
            features = encoder(torch.zeros(batch_size, num_samples, device="meta"), lengths)
        if self.clap.text_encoder is None:
            outputs = (self.clap(features, torch.full((batch_size,), 1), features=features),)
        else:
            outputs = (self.clap.audio_projection(features), self.embed_text(batch_size, num_tokens))
        if trained := [output.sum() for output in outputs if output.requires_grad]:
            torch.stack(trained).sum().backward()

    def embed_text(self, batch_size: int, num_tokens: int) -> Tensor:
        """(batch, embed_dim)."""
        if "text_encoder" in self.skipped:
            return self.clap.text_projection(torch.zeros(batch_size, self.clap.text_encoder.output_dim, device="meta"))
        tokens = torch.ones(batch_size, num_tokens, dtype=torch.long, device="meta")
        return self.clap.embed_text(tokens, tokens.bool())


def make_meta_views(encoder: LogMelEncoder, batch_size: int, duration: float) -> Views:
    """Views of clips of `duration` seconds, without values."""
    frontend, fusion = encoder.frontend, encoder.fusion
    longest = round(duration * frontend.sample_rate)
    windows = len(window_starts(longest, frontend.num_samples)) if isinstance(fusion, MeanOfWindows) else 1
    rows = batch_size * windows
    log_mel = torch.zeros(rows, fusion.num_views, frontend.num_frames, frontend.n_mels, device="meta")
    is_longer = torch.full((rows,), longest > frontend.num_samples and fusion.num_views > 1)  # encoders read its values
    return Views(log_mel, is_longer, torch.arange(rows))


def count_flops(call: Callable[[], object]) -> int:
    """Products and sums of the matrix multiplications, convolutions and attention in a call."""
    aten = torch.ops.aten  # PyTorch counts attention on a GPU, but not that on a CPU
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, *qkv, **__: 2 * sdpa_flop_count(*qkv[:3]),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        call()
    return counter.get_total_flops()


def measure_gemm_rate(device: torch.device, precision: str, *, seconds: float = 0.25) -> float:
    """FLOP/s of square matrix products in a run's precision: the highest of about `seconds` of measurements.

    A run's TF32 setting and number of threads apply. A GPU multiplies matrices large enough to fill it. The global
    random state does not change.
    """
    size, generator = 8192 if device.type == "cuda" else 1024, torch.Generator(device)
    dtype = DTYPES.get(precision, torch.float32)
    a, b = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    product = torch.mm(a, b)  # warm-up, and memory for the results
    shortest, end = math.inf, time.perf_counter() + seconds
    while shortest == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=product)
        synchronize(device)
        shortest = min(shortest, time.perf_counter() - start)
    return PRODUCTS * 2 * size**3 / shortest


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

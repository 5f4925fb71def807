"""Inputs of inference, audio files and waveforms at any rate: durations, batches by duration, conversion to mono."""

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import soxr
import torch
from torch import Tensor

from clap.waveform import (
    LONGEST,
    MAX_PEAK,
    MAX_RATE,
    SHORTEST,
    AudioError,
    check_duration,
    choose_part,
    load_waveform,
    mix_down,
    read_header,
)

Recording = str | os.PathLike | np.ndarray | Tensor
MINUTE = 60.0  # seconds


def load_batches(
    audio: Sequence[Recording],
    sample_rate: int | None,
    *,
    batch_size: int,
    target_rate: int,
    window: float | None,
    longest: float = LONGEST,
) -> Iterator[tuple[dict[int, Tensor], dict[int, AudioError]]]:
    """Batches of clips of similar duration, the longest first: waveforms (samples,), and errors of invalid clips.

    The keys of both are positions in `audio`; the other arguments are those of `load_recording`.
    """
    options = {"target_rate": target_rate, "window": window, "longest": longest}
    durations = [measure_duration(item, sample_rate) for item in audio]
    for positions in plan_batches(durations, batch_size, window=window):
        waveforms, errors = {}, {}
        for position in positions:
            name = f"waveform {position}"
            try:
                waveforms[position] = load_recording(audio[position], sample_rate, name=name, **options)
            except AudioError as error:
                errors[position] = error
        yield waveforms, errors


def measure_duration(item: Recording, sample_rate: int | None) -> float:
    """Seconds of a waveform, or of a file, without decoding it; infinite if the file is invalid.

    Raises:
        ValueError: a waveform without sample_rate.
    """
    if not isinstance(item, str | os.PathLike):
        if not sample_rate or not 0 < sample_rate <= MAX_RATE:
            raise ValueError(f"sample_rate={sample_rate}: waveforms need sample_rate=..., in Hz, up to {MAX_RATE}")
        return max(np.shape(item), default=0) / sample_rate
    try:
        return read_header(item).duration
    except AudioError:
        return math.inf


def plan_batches(durations: Sequence[float], batch_size: int, *, window: float | None) -> Iterator[list[int]]:
    """Positions of clips of similar duration, the longest first; fewer than `batch_size` if longer than a minute.

    Args:
        window: seconds of a clip that are used; None for all.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not 1 or more")
    used = [min(duration, window or math.inf) for duration in durations]
    order = sorted(range(len(used)), key=lambda position: -used[position])
    while order:
        longest = max(used[order[0]], MINUTE)
        size = max(1, int(batch_size * MINUTE / longest))
        yield order[:size]
        order = order[size:]


def load_recording(
    item: Recording,
    sample_rate: int | None,
    *,
    name: str,
    target_rate: int,
    window: float | None,
    longest: float = LONGEST,
) -> Tensor:
    """A file or waveform as mono float32 (samples,) at `target_rate` Hz; of a longer clip the middle `window` seconds.

    Args:
        sample_rate: Hz of a waveform; ignored for a file.
        name: of a waveform, for error messages.
        longest: seconds that may be read of a clip.

    Raises:
        AudioError: the file or waveform is invalid, too long, or does not fit into memory.
    """
    if isinstance(item, str | os.PathLike):
        return torch.from_numpy(load_waveform(item, target_rate, max_duration=window, longest=longest))
    waveform = check_waveform(item, sample_rate, name)
    start, count = choose_part(len(waveform), sample_rate, window, None)
    check_duration(name, count / sample_rate, longest)
    waveform = waveform[start : start + count]
    try:
        waveform = waveform if sample_rate == target_rate else soxr.resample(waveform, sample_rate, target_rate)
    except MemoryError:
        raise AudioError(f"{name} at {sample_rate} Hz does not fit into memory at {target_rate} Hz; cut it") from None
    return torch.from_numpy(waveform)


def check_waveform(item: np.ndarray | Tensor, sample_rate: int, name: str) -> np.ndarray:
    """Float (samples,) or (channels, samples) -> mono float32 (samples,)."""
    waveform = item.detach().cpu() if isinstance(item, Tensor) else np.asarray(item)
    is_float = waveform.is_floating_point() if isinstance(waveform, Tensor) else waveform.dtype.kind == "f"
    if not is_float:
        raise AudioError(f"{name} has dtype {waveform.dtype}; give floats in [-1, 1], such as int16 samples / 32768")
    shortest = SHORTEST * sample_rate
    if waveform.ndim not in (1, 2) or 0 in waveform.shape or waveform.shape[-1] < shortest:
        raise AudioError(
            f"{name} has shape {tuple(waveform.shape)}; give (samples,) or (channels, samples), "
            f"{shortest:.0f} samples or more"
        )
    waveform = np.asarray(waveform.float() if isinstance(waveform, Tensor) else waveform, dtype=np.float32)
    waveform = mix_down(waveform.T) if waveform.ndim == 2 else waveform
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(f"{name} contains NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioError(f"{name} has samples up to {peak:.4g}, full scale is 1; divide int16 samples by 32768")
    return waveform

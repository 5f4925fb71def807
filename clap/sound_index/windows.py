"""Recordings of any length to embeddings: one of a short recording, one of each window of a longer one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clap.model import Clap
from clap.waveform import SHORTEST, open_recording, read_mono, resample_stream

SLACK = 1.05  # a recording that is longer than a window by less than this factor is not divided


@dataclass(frozen=True)
class WindowPolicy:
    """How a recording is divided: windows of `window` seconds, one every `hop` seconds, the last one at the end.

    A recording of up to 1.05 windows is not divided.
    """

    window: float
    hop: float

    @classmethod
    def choose(cls, clap: Clap, *, window: float | None, hop: float | None, overlap: int = 2) -> "WindowPolicy":
        """The policy for a model.

        Args:
            window: seconds; None for the input window of the audio encoder, also of one that takes whole clips.
            hop: seconds; None for 1 / `overlap` of the window.

        Raises:
            ValueError: the window is longer than the encoder's or shorter than 20 ms, or the hop is longer than the
                window, so that windows would leave gaps.
        """
        longest = float(clap.audio_encoder.window)
        window = longest if window is None else float(window)
        hop = window / overlap if hop is None else float(hop)
        if not SHORTEST <= window <= longest:
            raise ValueError(
                f"window={window:g} s is not between {SHORTEST} s and the model's {longest:g} s; change it"
            )
        if not SHORTEST <= hop <= window:
            raise ValueError(f"hop={hop:g} s is not between {SHORTEST} s and the window of {window:g} s; change it")
        return cls(window, hop)

    def divides(self, duration: float) -> bool:
        """Whether a recording of that many seconds has several windows."""
        return duration > SLACK * self.window


def read_windows(path: str | os.PathLike, sample_rate: int, policy: WindowPolicy) -> Iterator[tuple[int, np.ndarray]]:
    """First sample and waveform (samples,) at `sample_rate` Hz of each window of a long recording, read in blocks.

    Memory does not depend on the length of the recording.

    Raises:
        AudioError: the recording is invalid, perhaps after some windows.
    """
    path, size = Path(path), round(policy.window * sample_rate)
    with open_recording(path) as (file, num_frames):
        total = round(num_frames * sample_rate / file.samplerate)
        last = max(0, total - size)
        starts = [*range(0, last, round(policy.hop * sample_rate)), last]
        blocks = resample_stream(read_mono(path, file, 0, num_frames), num_frames, file.samplerate, sample_rate)
        buffer, offset = np.empty(0, np.float32), 0  # the waveform from sample `offset` on
        for start in starts:
            while offset + len(buffer) < start + size and (block := next(blocks, None)) is not None:
                done = min(start - offset, len(buffer))
                buffer, offset = np.concatenate([buffer[done:], block]), offset + done
            waveform = buffer[start - offset : start - offset + size]
            yield start, np.pad(waveform, (0, size - len(waveform)))  # the resampler's length may differ by a sample


def embed_recording(
    clap: Clap, path: str | os.PathLike, policy: WindowPolicy, *, batch_size: int = 16
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Times (n, 2), start and end in seconds, and embeddings (n, embed_dim) on the CPU, in batches of windows.

    Of a recording that is not divided: its duration, and the embedding of `Clap.get_audio_embeddings`.

    Raises:
        AudioError: the recording is invalid.
    """
    with open_recording(Path(path)) as (file, num_frames):
        duration = num_frames / file.samplerate
    if not policy.divides(duration):
        yield np.array([[0.0, duration]]), clap.get_audio_embeddings([path]).cpu()
        return
    windows = read_windows(path, clap.sample_rate, policy)
    while batch := [window for _, window in zip(range(batch_size), windows, strict=False)]:
        starts = np.array([start for start, _ in batch]) / clap.sample_rate
        waveforms = torch.from_numpy(np.stack([waveform for _, waveform in batch]))
        lengths = torch.full((len(batch),), waveforms.shape[1])
        with clap.inference():
            embeddings = clap.embed_audio(waveforms.to(clap.device), lengths).cpu()
        yield np.stack([starts, np.minimum(starts + policy.window, duration)], axis=1), embeddings

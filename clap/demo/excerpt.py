"""A part of a recording for a browser: a FLAC file that it plays and a picture of the spectrogram, in flat memory."""

import itertools
import math
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from matplotlib.image import imsave

from clap.audio import LogMelSpectrogram
from clap.waveform import open_recording, read_mono, resample_stream

MAX_RATE = 48000  # Hz of the FLAC file; a browser's limit is near 96000
LONG_RATE = 16000  # Hz of an excerpt longer than LONG, about 60 MB an hour
LONG = 600.0  # seconds
COLUMNS = 800  # of a picture
N_MELS = 96
F_MIN, F_MAX = 50.0, 16000.0  # Hz of the picture
RANGE_DB = 70.0  # below the loudest cell, a picture is black
KEPT = 200  # newest excerpts of a folder


@dataclass(frozen=True)
class Excerpt:
    """Files of a part of a recording, from `start` to `end` seconds; `peak` is its largest sample (full scale is 1)."""

    audio: Path
    picture: Path
    start: float
    end: float
    peak: float


class Picture:
    """A spectrogram of `count` samples at `sample_rate` Hz that is computed block by block.

    Columns average the level in dB, so that a picture of an hour is as large as one of a second.
    """

    def __init__(self, count: int, sample_rate: int) -> None:
        self.n_fft = 2 ** max(6, round(math.log2(sample_rate * 0.04)))
        self.hop_length = max(1, min(max(count // COLUMNS, sample_rate // 400), sample_rate // 100))
        self.frontend = LogMelSpectrogram(
            sample_rate,
            window=1.0,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            n_mels=min(N_MELS, self.n_fft // 16),
            f_min=F_MIN,
            f_max=min(F_MAX, sample_rate / 2),
        )
        self.count, self.read = count, 0
        self.num_columns = min(COLUMNS, count // self.hop_length + 1)
        self.total = np.zeros((self.num_columns, self.frontend.n_mels))
        self.frames = np.zeros(self.num_columns)

    def add(self, block: np.ndarray) -> None:
        """Add the next samples (samples,)."""
        padded = np.pad(block, (0, max(0, self.n_fft - len(block))))  # reflection needs half a window
        log_mel = self.frontend.whole_clip(torch.from_numpy(padded))[: len(block) // self.hop_length + 1].numpy()
        at = self.read + np.arange(len(log_mel)) * self.hop_length  # samples
        columns = np.minimum(at * self.num_columns // self.count, self.num_columns - 1)
        np.add.at(self.total, columns, log_mel)
        np.add.at(self.frames, columns, 1)
        self.read += len(block)

    def save(self, path: Path) -> None:
        """Write a PNG, low frequencies at the bottom."""
        level = self.total / np.maximum(self.frames, 1)[:, None]
        loudest = level.max()
        imsave(path, level.T, vmin=loudest - RANGE_DB, vmax=loudest, cmap="magma", origin="lower", format="png")


def write_excerpt(recording: str | os.PathLike, folder: Path, *, start: float = 0.0, end: float = math.inf) -> Excerpt:
    """Write the FLAC file and the picture of a part of a recording into a folder, under names that cannot be guessed.

    Args:
        start, end: seconds of the recording.

    Raises:
        AudioError: the recording is invalid.
    """
    path = Path(recording)
    name = secrets.token_urlsafe(16)
    with open_recording(path) as (file, num_frames):
        rate = file.samplerate
        first = min(max(0, int(start * rate)), num_frames - 1)
        count = min(num_frames, math.ceil(min(end * rate, num_frames))) - first
        target_rate = min(rate, LONG_RATE if count > LONG * rate else MAX_RATE)
        picture, peak = Picture(count, rate), 0.0
        blocks, copies = itertools.tee(read_mono(path, file, first, count))
        with soundfile.SoundFile(folder / f"{name}.flac", "w", target_rate, 1, subtype="PCM_16") as player:
            for block, resampled in zip(blocks, resample_stream(copies, count, rate, target_rate), strict=True):
                picture.add(block)
                peak = max(peak, float(np.abs(block).max()))
                player.write(resampled.clip(-1, 1))
    picture.save(folder / f"{name}.png")
    drop_oldest(folder)
    return Excerpt(folder / f"{name}.flac", folder / f"{name}.png", first / rate, (first + count) / rate, peak)


def drop_oldest(folder: Path) -> None:
    """Remove all but the newest excerpts of a folder."""
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in files[: -2 * KEPT]:
        path.unlink(missing_ok=True)

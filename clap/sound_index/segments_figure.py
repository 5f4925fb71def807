"""Figure of a long recording: its log-mel, and the scores of texts over time."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clap.audio import mel_filters
from clap.plotting import INK, PALETTE, fit_text, new_figure, save_png, style_axes
from clap.sound_index.events import Event, SegmentScores
from clap.waveform import open_recording, read_mono

N_FFT, N_MELS = 1024, 64
MOST_COLUMNS = 1000  # of the picture
DYNAMIC_RANGE = 80.0  # dB
UNITS = ((3 * 3600.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def plot_segments(
    path: str | os.PathLike, segments: SegmentScores, events: Sequence[Event], output: Path, *, threshold: float
) -> None:
    """Save a PNG: above, the log-mel of the recording; below, a line for each text, and bars at its events.

    Raises:
        AudioError: the recording is invalid.
    """
    end = float(segments.times[-1, 1])
    unit, name = next((unit, name) for least, unit, name in UNITS if end >= least)
    figure = new_figure(11.0, 5.6, title=fit_text(Path(path).name, 80))
    heights = [1, 1.6, 0.08 * len(segments.texts)]
    upper, lower, bars = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    log_mel, top = summarize_log_mel(path)
    upper.imshow(log_mel.T, origin="lower", aspect="auto", cmap="magma", extent=(0, end / unit, 0, N_MELS))
    bands = np.linspace(0, N_MELS, 3)
    upper.set_yticks(bands, [f"{band_frequency(band, top) / 1000:.1f}" for band in bands])
    style_axes(upper, xlabel="", ylabel="kHz (mel)")
    upper.grid(False)
    centers = segments.times.mean(axis=1) / unit
    for index, (text, scores) in enumerate(zip(segments.texts, segments.scores.T, strict=True)):
        color, marker = PALETTE[index % len(PALETTE)], "o" if len(scores) == 1 else None
        lower.plot(centers, scores, color=color, linewidth=1.5, marker=marker, label=fit_text(text, 30))
        spans = [(event.start / unit, (event.end - event.start) / unit) for event in events if event.text == text]
        bars.broken_barh(spans, (-index - 0.4, 0.8), color=color)
    lower.axhline(threshold, color=INK, linewidth=1.0, linestyle="--", label=f"threshold {threshold:g}")
    style_axes(lower, xlabel="", ylabel=segments.kind)
    style_axes(bars, xlabel=name, ylabel="events")
    bars.set_yticks([])
    bars.set_ylim(-len(segments.texts) + 0.4, 0.6)
    bars.set_xlim(0, end / unit)
    lower.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    save_png(figure, output)


def summarize_log_mel(path: str | os.PathLike) -> tuple[np.ndarray, float]:
    """Log-mel (columns, N_MELS) in dB below its peak, of evenly divided parts, and half the sample rate in Hz.

    The recording is read in blocks; each column is the mean power of its frames.
    """
    path = Path(path)
    with open_recording(path) as (file, num_frames):
        rate = file.samplerate
        total = max(1, num_frames // N_FFT)
        columns = min(total, MOST_COLUMNS)
        power, counts = np.zeros((columns, N_FFT // 2 + 1)), np.zeros(columns)
        rest, done = np.empty(0, np.float32), 0
        for block in read_mono(path, file, 0, num_frames):
            block = np.concatenate([rest, block])
            frames, rest = np.split(block, [len(block) // N_FFT * N_FFT])
            frames = frames.reshape(-1, N_FFT)
            place = np.minimum((done + np.arange(len(frames))) * columns // total, columns - 1)
            np.add.at(power, place, np.abs(np.fft.rfft(frames * np.hanning(N_FFT).astype(np.float32))) ** 2)
            np.add.at(counts, place, 1)
            done += len(frames)
    filters = mel_filters(rate, n_fft=N_FFT, n_mels=N_MELS, f_min=0.0, f_max=rate / 2, mel_scale="htk")
    log_mel = 10 * np.log10(np.maximum(power / np.maximum(counts, 1)[:, None] @ filters.T, 1e-10))
    return np.maximum(log_mel - log_mel.max(), -DYNAMIC_RANGE), rate / 2


def band_frequency(band: float, top: float) -> float:
    """Frequency in Hz of a mel band, of those from 0 to `top` Hz (O'Shaughnessy 1987)."""
    return 700.0 * ((1.0 + top / 700.0) ** (band / N_MELS) - 1.0)

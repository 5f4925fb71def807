"""Recordings to waveforms: decode, check, mix to mono, resample, choose the part to read. Imports no torch."""

import contextlib
import functools
import operator
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

SHORTEST = 0.02  # seconds, about one analysis frame
MAX_PEAK = 10.0  # full scale is 1; lossy decoders and float mixes exceed it slightly, integers stored as floats by far
UNKNOWN_LENGTH = 0x7FFFF000  # bytes; sox (ffmpeg: all ones) writes it into the header of a stream


class AudioError(ValueError):
    """An invalid recording; the message names the file and the problem."""


def load_waveform(
    path: str | os.PathLike,
    sample_rate: int,
    *,
    max_duration: float | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Read a recording as mono float32 (samples,) at `sample_rate`; only the required part is decoded.

    Full scale is [-1, 1]. Slightly higher peaks, of lossy decoders or float mixes, are kept, as in the published code.

    Args:
        sample_rate: Hz of the result; channels are averaged, then resampled by soxr (HQ).
        max_duration: seconds; of a longer recording the middle is read, or a random part if `rng` is given.

    Raises:
        AudioError: missing, empty, truncated, not audio, shorter than 20 ms, not finite, or far above full scale.
        ValueError: max_duration is shorter than 20 ms.
    """
    path = Path(path)
    if max_duration is not None and not max_duration >= SHORTEST:
        raise ValueError(
            f"max_duration={max_duration} s is shorter than one frame of {SHORTEST} s; set dataset.max_duration"
        )
    with open_recording(path) as file:
        start, count = choose_part(file.frames, file.samplerate, max_duration, rng)
        file.seek(start)
        waveform = mix_down(file.read(count, dtype="float32", always_2d=True))
        file_rate, may_overshoot = file.samplerate, not file.subtype.startswith("PCM")  # PCM cannot
    if len(waveform) < count:
        raise AudioError(f"{path}: truncated, {len(waveform)} of {count} samples could be read")
    if may_overshoot:
        check_samples(path, waveform)
    return soxr.resample(waveform, file_rate, sample_rate) if file_rate != sample_rate else waveform


@contextlib.contextmanager
def open_recording(path: Path) -> Iterator[soundfile.SoundFile]:
    """A recording, open for reading; AudioError if the file is invalid or cannot be decoded."""
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty, 0 bytes")
    try:
        with soundfile.SoundFile(path) as file:
            check_header(path, file)
            yield file
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: the name ends in .raw, which has no header
        reason = getattr(error, "error_string", "no header").strip()
        raise AudioError(f"{path}: cannot be decoded ({reason}); damaged, or not WAV, FLAC, OGG, Opus, MP3") from None


def mix_down(samples: np.ndarray) -> np.ndarray:
    """Mean over channels, (samples, channels) -> (samples,); for stereo 20 times as fast as `mean`."""
    return samples[:, 0] if samples.shape[1] == 1 else functools.reduce(operator.add, samples.T) / samples.shape[1]


def check_samples(path: Path, waveform: np.ndarray) -> None:
    """AudioError if samples are not finite or far above full scale."""
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(f"{path}: holds NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioError(f"{path}: samples reach {peak:.4g}, full scale is 1; rescale the file")


def check_header(path: Path, file: soundfile.SoundFile) -> None:
    """AudioError if a file is empty, too short, or shorter than the length in its header."""
    for announced, present in re.findall(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)", file.extra_info):
        if int(present) < int(announced) < UNKNOWN_LENGTH:
            raise AudioError(f"{path}: truncated, its header announces {announced} bytes and {present} are there")
    if file.format == "OGG" and not has_last_page(path):
        raise AudioError(f"{path}: truncated, its last Ogg page is missing")
    if file.frames == 0:
        raise AudioError(f"{path}: empty, no samples")
    if file.frames < SHORTEST * file.samplerate:
        raise AudioError(
            f"{path}: {file.frames} samples at {file.samplerate} Hz, shorter than one frame of {SHORTEST} s"
        )


def has_last_page(path: Path) -> bool:
    """Whether an Ogg file ends with a complete page that is marked as the last of its stream (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 2**16), os.SEEK_END)  # a page has 65307 bytes at most
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:  # page header without its segment table
        return False
    is_last, num_segments = bool(page[5] & 4), page[26]
    return is_last and len(page) >= 27 + num_segments + sum(page[27 : 27 + num_segments])


def choose_part(
    num_frames: int, file_rate: int, max_duration: float | None, rng: np.random.Generator | None
) -> tuple[int, int]:
    """Start and count, in samples of the file, of the part to read: the middle, or a random part with `rng`."""
    count = num_frames if max_duration is None else min(num_frames, round(max_duration * file_rate))
    spare = num_frames - count
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return start, count

"""Recordings to waveforms: decode, check, mix to mono, resample, choose the part to read. Imports no torch."""

import contextlib
import functools
import io
import itertools
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from clap.audio_formats import explain_undecodable
from clap.containers import AudioError, advise, check_mpeg, check_stream
from clap.member import Member, count_bytes

SHORTEST = 0.02  # seconds, about one analysis frame
LONGEST = 3600.0  # seconds that are decoded of a clip, about 0.7 GB at 48 kHz
MAX_RATE = 1_000_000  # Hz; the highest in use is 768 kHz
MAX_PEAK = 10.0  # full scale is 1; lossy decoders and float mixes exceed it slightly, integers stored as floats by far
BLOCK = 2**22  # samples of all channels that are decoded at once
MPEG_LEAD = 4 * 1152  # samples decoded before a part of MPEG audio, whose frames refer to earlier ones
MAX_TRAILER = 2**16  # bytes behind the audio of a WAV file that its header does not count, such as a tag
UNKNOWN_LENGTH = 0x7FFFF000  # bytes; sox (ffmpeg: all ones) writes it into the header of a stream
ANNOUNCED = r"(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)"  # of WAV, AIFF, AU, RF64, W64


class TooLongError(AudioError):
    """A clip longer than allowed."""


@dataclass(frozen=True)
class AudioHeader:
    """Sample rate in Hz, length in samples per channel, and size in bytes of a recording."""

    sample_rate: int
    num_frames: int
    num_bytes: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_frames / self.sample_rate


def load_waveform(
    path: str | os.PathLike | Member,
    sample_rate: int,
    *,
    max_duration: float | None = None,
    rng: np.random.Generator | None = None,
    longest: float = LONGEST,
) -> np.ndarray:
    """Read a recording as mono float32 (samples,) at `sample_rate`; only the required part is decoded.

    Full scale is [-1, 1]. Slightly higher peaks, of lossy decoders or float mixes, are kept, as in the published code.

    Args:
        sample_rate: Hz of the result; channels are averaged, then resampled by soxr (HQ).
        max_duration: seconds; of a longer recording the middle is read, or a random part if `rng` is given.
        longest: seconds; a clip of which more would be read is refused, whatever its header claims.

    Raises:
        AudioError: missing, empty, truncated, not audio, shorter than 20 ms, too long, not finite, or far above full
            scale.
        ValueError: max_duration is shorter than 20 ms.
    """
    path = path if isinstance(path, Member) else Path(path)
    if max_duration is not None and not max_duration >= SHORTEST:
        raise ValueError(
            f"max_duration={max_duration} s is shorter than one frame of {SHORTEST} s; set dataset.max_duration"
        )
    with open_recording(path) as (file, num_frames):
        start, count = choose_part(num_frames, file.samplerate, max_duration, rng)
        check_duration(path, count / file.samplerate, longest)
        blocks = read_mono(path, file, start, count)
        return resample_blocks(blocks, count, file.samplerate, sample_rate)


def check_duration(name: Path | Member | str, duration: float, longest: float) -> None:
    """TooLongError if more than `longest` seconds of a clip would be read."""
    if duration > longest:
        raise TooLongError(
            f"{name}: {duration:.1f} s long, the longest clip is {longest:g} s; cut it, or raise dataset.longest_clip "
            "(clap.longest_clip in Python)"
        )


def read_mono(path: Path | Member, file: soundfile.SoundFile, start: int, count: int) -> Iterator[np.ndarray]:
    """A part of a recording, mixed to mono, in consecutive blocks (samples,)."""
    for block in read_blocks(path, file, start, count, size=max(1, BLOCK // file.channels)):
        mono = mix_down(block)
        if not file.subtype.startswith("PCM"):  # which cannot overshoot
            check_samples(path, mono)
        yield mono


def read_blocks(
    path: Path | Member, file: soundfile.SoundFile, start: int, count: int, *, size: int
) -> Iterator[np.ndarray]:
    """A part of a recording in consecutive blocks (size, channels).

    Raises:
        AudioError: the file ends early.
    """
    for position in range(start, start + count, size):
        lead = min(position, MPEG_LEAD) if file.subtype.startswith("MPEG") else 0
        wanted = min(size, start + count - position)
        file.seek(position - lead)
        block = file.read(lead + wanted, dtype="float32", always_2d=True)[lead:]
        if len(block) < wanted:
            done = position - start + len(block)
            raise AudioError(f"{path}: truncated, {done} of {count} samples could be read")
        yield block


def resample_blocks(blocks: Iterator[np.ndarray], count: int, file_rate: int, sample_rate: int) -> np.ndarray:
    """One waveform (samples,) at `sample_rate` from blocks (samples,) with `count` samples in all.

    A single block, as of most clips, is resampled at once: soxr's stream gives the same samples in more time.
    """
    first = next(blocks)
    if len(first) == count:
        return soxr.resample(first, file_rate, sample_rate) if file_rate != sample_rate else first
    waveform = np.empty(math.ceil(count * sample_rate / file_rate) + 1, dtype=np.float32)
    filled = 0
    for block in resample_stream(itertools.chain([first], blocks), count, file_rate, sample_rate):
        waveform[filled : filled + len(block)] = block
        filled += len(block)
    return waveform[:filled]


def resample_stream(blocks: Iterable[np.ndarray], count: int, file_rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks (samples,) with `count` samples in all, resampled one by one; the last one has what the others delayed."""
    if file_rate == sample_rate:
        yield from blocks
        return
    resampler, read = soxr.ResampleStream(file_rate, sample_rate, num_channels=1, dtype="float32"), 0
    for block in blocks:
        read += len(block)
        yield resampler.resample_chunk(block, last=read == count)


def read_header(path: str | os.PathLike | Member) -> AudioHeader:
    """Rate, length and size of a recording, without decoding it; AudioError if it is invalid."""
    path = path if isinstance(path, Member) else Path(path)
    with open_recording(path) as (file, num_frames):
        return AudioHeader(file.samplerate, num_frames, count_bytes(path))


@contextlib.contextmanager
def open_recording(path: Path | Member) -> Iterator[tuple[soundfile.SoundFile, int]]:
    """A recording, open for reading, and its length in samples.

    Raises:
        AudioError: the file is invalid or cannot be decoded; also for errors of the decoder inside the `with` block.
    """
    check_present(path)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_decoder(check_stream(path)))
            num_frames = file.frames
            if file.subtype.startswith("MPEG"):
                source, num_frames = check_mpeg(path, num_frames)
                if source is not path:
                    file = stack.enter_context(open_decoder(source))
                    num_frames = file.frames  # without the decoder's delay
            check_header(path, file, num_frames)
            yield file, num_frames
    except (OSError, RuntimeError, SystemError, OverflowError, TypeError) as error:
        # RuntimeError: LibsndfileError; TypeError: the name ends in .raw, which has no header
        reason = "no header" if isinstance(error, TypeError) else getattr(error, "error_string", str(error)).strip()
        raise AudioError(f"{path}: cannot be decoded ({reason}); {explain_undecodable(path)}") from None
    except MemoryError:
        raise AudioError(f"{path}: does not fit into memory; cut it into shorter clips") from None


def check_present(path: Path | Member) -> None:
    """AudioError if a recording is missing, empty, or behind the end of its shard."""
    file = Path(path.local) if isinstance(path, Member) else path
    if not file.is_file():
        kind = "shard" if isinstance(path, Member) else "audio file"
        raise AudioError(f"{path}: no such {kind}" + (f", a link to {file.readlink()}" if file.is_symlink() else ""))
    if count_bytes(path) == 0:
        raise AudioError(f"{path}: empty, 0 bytes")
    if isinstance(path, Member) and path.offset + path.size > (length := file.stat().st_size):
        raise AudioError(
            f"{path}: truncated, the shard has {length} bytes, this recording ends at {path.offset + path.size}"
        )


def open_decoder(source: Path | Member | io.BytesIO) -> soundfile.SoundFile:
    """libsndfile on a file, on a member of a shard, or on bytes in memory."""
    return soundfile.SoundFile(source.open_whole() if isinstance(source, Member) else source)


def mix_down(samples: np.ndarray) -> np.ndarray:
    """Mean over channels, (samples, channels) -> (samples,); for stereo 20 times as fast as `mean`."""
    return samples[:, 0] if samples.shape[1] == 1 else functools.reduce(operator.add, samples.T) / samples.shape[1]


def check_samples(path: Path | Member, waveform: np.ndarray) -> None:
    """AudioError if samples are not finite or far above full scale."""
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(f"{path}: holds NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioError(f"{path}: samples reach {peak:.4g}, full scale is 1; rescale the file")


def check_header(path: Path | Member, file: soundfile.SoundFile, num_frames: int) -> None:
    """AudioError if a file is empty, too short, or shorter than the length in its header."""
    for announced, present in re.findall(ANNOUNCED, file.extra_info):
        if int(present) < int(announced) < UNKNOWN_LENGTH:
            raise AudioError(f"{path}: truncated, its header announces {announced} bytes and {present} are there")
    for present, *sizes in re.findall(r"Length *: (\d+)\nRIFF *: (\d+)(?s:.*)\ndata *: (\d+)", file.extra_info):
        announced = max(map(int, sizes))
        if int(present) - announced > max(MAX_TRAILER, announced // 10) and announced > 0:
            raise AudioError(
                f"{path}: its header announces {announced} bytes and {present} are there; read all of them with "
                f"`ffmpeg -ignore_length 1 -i {path.name} {path.stem}.flac`"
            )
    if num_frames <= 0:
        raise AudioError(f"{path}: empty, no samples according to its header; if it has some, {advise(path)}")
    if file.samplerate > MAX_RATE:
        raise AudioError(f"{path}: its header has a sample rate of {file.samplerate} Hz, the limit is {MAX_RATE}")
    if num_frames < SHORTEST * file.samplerate:
        raise AudioError(
            f"{path}: {num_frames} samples at {file.samplerate} Hz, shorter than one frame of {SHORTEST} s"
        )


def choose_part(
    num_frames: int, file_rate: int, max_duration: float | None, rng: np.random.Generator | None
) -> tuple[int, int]:
    """Start and count, in samples of the file, of the part to read: the middle, or a random part with `rng`."""
    count = num_frames if max_duration is None else min(num_frames, round(max_duration * file_rate))
    spare = num_frames - count
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return start, count

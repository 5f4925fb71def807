"""Audio from file to log-mel: load, resample, cut, fill, spectrogram, masks.

Workers call `load_waveform`; everything else runs on the device, inside the audio encoder.
"""

import contextlib
import functools
import operator
import os
import re
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np
import soundfile
import soxr
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from clap.config.values import FILL_MODES, MEL_SCALES

SHORTEST = 0.02  # seconds: below one analysis frame there is nothing to hear
MAX_PEAK = 10.0  # full scale is 1; lossy decoders and float mixes overshoot a little, integers kept as floats a lot
UNKNOWN_LENGTH = 0x7FFFF000  # bytes: what sox (ffmpeg: all ones) writes into a header that it cannot go back to


class AudioError(ValueError):
    """A recording that cannot be used; the message names the file and what is wrong with it."""


def load_waveform(
    path: str | os.PathLike,
    sample_rate: int,
    *,
    max_duration: float | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Read a recording as mono float32 (samples,) at `sample_rate`, decoding only the part that is needed.

    Full scale is [-1, 1]. Peaks a little above it, of lossy decoders or float mixes, stay, as in the published code.

    Args:
        sample_rate: Hz of the result; channels are averaged, then resampled by soxr (HQ).
        max_duration: seconds; of a longer recording the middle is read, or a random part where `rng` is given.

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
        file_rate, may_overshoot = file.samplerate, not file.subtype.startswith("PCM")  # integers cannot
    if len(waveform) < count:
        raise AudioError(f"{path}: truncated, {len(waveform)} of {count} samples could be read")
    if may_overshoot:
        check_samples(path, waveform)
    return soxr.resample(waveform, file_rate, sample_rate) if file_rate != sample_rate else waveform


@contextlib.contextmanager
def open_recording(path: Path) -> Iterator[soundfile.SoundFile]:
    """A recording, open for reading; what is wrong with its file or stops its decoding is an AudioError."""
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
    """Mean over channels, (samples, channels) -> (samples,); by columns, for stereo 20 times as fast as `mean`."""
    return samples[:, 0] if samples.shape[1] == 1 else functools.reduce(operator.add, samples.T) / samples.shape[1]


def check_samples(path: Path, waveform: np.ndarray) -> None:
    """Refuse samples that are not finite or far above full scale."""
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise AudioError(f"{path}: holds NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioError(f"{path}: samples reach {peak:.4g}, full scale is 1; rescale the file")


def check_header(path: Path, file: soundfile.SoundFile) -> None:
    """Refuse a file that is empty, too short, or cut off before the length that its header announces."""
    for announced, there in re.findall(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)", file.extra_info):
        if int(there) < int(announced) < UNKNOWN_LENGTH:
            raise AudioError(f"{path}: truncated, its header announces {announced} bytes and {there} are there")
    if file.format == "OGG" and not has_last_page(path):
        raise AudioError(f"{path}: truncated, its last Ogg page is missing")
    if file.frames == 0:
        raise AudioError(f"{path}: empty, no samples")
    if file.frames < SHORTEST * file.samplerate:
        raise AudioError(
            f"{path}: {file.frames} samples at {file.samplerate} Hz, shorter than one frame of {SHORTEST} s"
        )


def has_last_page(path: Path) -> bool:
    """Does an Ogg file end with a whole page that is marked as its stream's last (RFC 3533, section 6)?"""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 2**16), os.SEEK_END)  # a page has 65307 bytes at most
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:  # a page's header, without its table of segments
        return False
    is_last, num_segments = bool(page[5] & 4), page[26]
    return is_last and len(page) >= 27 + num_segments + sum(page[27 : 27 + num_segments])


def choose_part(
    num_frames: int, file_rate: int, max_duration: float | None, rng: np.random.Generator | None
) -> tuple[int, int]:
    """Start and count, in the file's own samples, of the part to read: the middle, or random with `rng`."""
    count = num_frames if max_duration is None else min(num_frames, round(max_duration * file_rate))
    spare = num_frames - count
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return start, count


def fill_waveform(waveform: Tensor, lengths: Tensor, num_samples: int, mode: str) -> Tensor:
    """Make short clips last `num_samples`.

    waveform (batch, samples), lengths (batch,) -> (batch, num_samples); what lies behind a row's length is not read.

    Args:
        mode: `pad` with zeros; `repeat` and cut; `repeat_pad`: whole repeats, then zeros (LAION-CLAP's `repeatpad`).
    """
    lengths = lengths.clamp(max=num_samples)[:, None]
    time = torch.arange(num_samples, device=waveform.device)[None]
    if mode == "pad":
        padded = F.pad(waveform, (0, num_samples - waveform.shape[1]))  # a negative pad cuts
        return torch.where(time < lengths, padded, 0.0)
    repeated = waveform.gather(1, time % lengths)
    return repeated if mode == "repeat" else torch.where(time < num_samples // lengths * lengths, repeated, 0.0)


def int16_round_trip(waveform: Tensor) -> Tensor:
    """Clip to [-1, 1] and truncate to 16 bits, as LAION-CLAP's file loader does."""
    return (waveform.clamp(-1, 1) * 32767).trunc() / 32767


class LogMelSpectrogram(nn.Module):
    """Log-mel spectrogram in dB, computed on the waveform's device, in float32 outside autocast.

    waveform (batch, samples) -> log_mel (batch, time, n_mels), time = samples // hop_length + 1.
    10 log10(max(mel, amin)) of the power spectrum: Hann window, centred, reflect-padded.

    Args:
        sample_rate: Hz of the waveforms.
        window: seconds that the encoder behind it sees at once.
        fill: how a shorter clip is filled up to the window: `repeat_pad`, `repeat` or `pad` (see `fill_waveform`).
        hop_length: samples between frames; 480 at 48 kHz is 10 ms.
        f_max: upper band edge, Hz.
        mel_scale: `slaney` (area-normalised filters) or `htk` (none); published fused models use `htk`.
        amin: power below which all counts as silence, 1e-10 (-100 dB) in the published models. From random weights
            HTS-AT learns sooner at 1e-5: its tokens otherwise tell silence from sound and little else.
        int16: round the waveform to 16 bits first, as LAION-CLAP does with files.

    Raises:
        ValueError: f_max is above half the rate or below f_min, the window is shorter than half of n_fft, or the
            fill or the mel scale is unknown.
    """

    # What published code does otherwise, see clap/published/frontends.py.
    dtype = torch.float32  # of the spectrum
    filter_rate: int | None = None  # Hz that the filters are made for; None: sample_rate

    def __init__(
        self,
        sample_rate: int,
        *,
        window: float,
        fill: str = "repeat_pad",
        n_fft: int = 1024,
        hop_length: int,
        n_mels: int = 64,
        f_min: float = 50.0,
        f_max: float = 14000.0,
        mel_scale: str = "slaney",
        amin: float = 1e-10,
        int16: bool = False,
    ) -> None:
        super().__init__()
        num_samples = round(window * sample_rate)
        if num_samples <= n_fft // 2:
            raise ValueError(
                f"window={window} s is {num_samples} samples, n_fft={n_fft} needs more than {n_fft // 2}; "
                "set audio_encoder.frontend.window"
            )
        if fill not in FILL_MODES:
            raise ValueError(f"fill={fill!r} is not one of {', '.join(FILL_MODES)}; set audio_encoder.frontend.fill")
        if f_max > sample_rate / 2:
            raise ValueError(f"f_max={f_max} is above half of {sample_rate} Hz; set audio_encoder.frontend.f_max")
        if not 0 <= f_min < f_max:
            raise ValueError(f"f_min={f_min} does not lie in 0 to f_max={f_max}; set audio_encoder.frontend.f_min")
        if not amin > 0:
            raise ValueError(f"amin={amin} is not above 0; set audio_encoder.frontend.amin")
        if mel_scale not in MEL_SCALES:
            raise ValueError(f"mel_scale={mel_scale!r} is not slaney or htk; set audio_encoder.frontend.mel_scale")
        self.sample_rate, self.n_fft, self.hop_length, self.n_mels = sample_rate, n_fft, hop_length, n_mels
        self.f_min, self.f_max, self.mel_scale, self.int16 = f_min, f_max, mel_scale, int16
        self.amin, self.fill, self.num_samples = amin, fill, num_samples
        self.num_frames = num_samples // hop_length + 1  # of a full window
        self.register_buffer("hann", self.make_window().to(self.dtype), persistent=False)
        self.register_buffer("mel", self.make_filters(), persistent=False)  # (n_fft // 2 + 1, n_mels)

    def make_window(self) -> Tensor:
        """Periodic Hann window (n_fft,)."""
        return torch.tensor(librosa.filters.get_window("hann", self.n_fft))

    def make_filters(self) -> Tensor:
        """Mel filters (n_fft // 2 + 1, n_mels)."""
        htk = self.mel_scale == "htk"
        filters = librosa.filters.mel(
            sr=self.filter_rate or self.sample_rate,
            n_fft=self.n_fft,
            n_mels=self.n_mels,
            fmin=self.f_min,
            fmax=self.f_max,
            htk=htk,
            norm=None if htk else "slaney",
            dtype=np.float64 if self.dtype == torch.float64 else np.float32,
        )
        return torch.tensor(filters.T.copy())

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(self, waveform: Tensor) -> Tensor:
        waveform = (int16_round_trip(waveform.float()) if self.int16 else waveform).to(self.dtype)
        spectrum = torch.stft(waveform, self.n_fft, self.hop_length, window=self.hann, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # (batch, n_fft // 2 + 1, time); no root in between
        return 10 * (power.transpose(1, 2) @ self.mel).clamp(min=self.amin).log10().float()

    def full_window(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms (batch, samples) inside the window, lengths (batch,) -> log_mel (batch, num_frames, n_mels)."""
        return self(fill_waveform(waveform, lengths, self.num_samples, self.fill))


class SpecAugment(nn.Module):
    """Zero random bands of time and frequency while training (Park et al. 2019), each clip its own.

    log_mel (batch, views, time, n_mels) -> same.

    Args:
        time_mask, frequency_mask: longest band, in frames and mel bins; 0 leaves the axis alone.
        num_masks: bands on each axis.
    """

    def __init__(self, *, time_mask: int, frequency_mask: int, num_masks: int = 2) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.time = torchaudio.transforms.TimeMasking(time_mask, iid_masks=True)
        self.frequency = torchaudio.transforms.FrequencyMasking(frequency_mask, iid_masks=True)

    def forward(self, log_mel: Tensor) -> Tensor:
        if not self.training:
            return log_mel
        masked = log_mel.transpose(2, 3)  # (batch, views, n_mels, time), as torchaudio wants it
        for _ in range(self.num_masks):
            masked = self.frequency(self.time(masked))
        return masked.transpose(2, 3)

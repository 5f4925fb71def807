"""Waveforms to log-mel on the model's device: fill to the window, spectrogram, SpecAugment."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from clap.config.values import FILL_MODES, MEL_SCALES

BLOCK = 2**14  # frames of a long clip whose spectrum is in memory, 13 times as large as their waveform


def fill_waveform(waveform: Tensor, lengths: Tensor, num_samples: int, mode: str) -> Tensor:
    """Fill short clips up to `num_samples` and cut longer ones.

    waveform (batch, samples), lengths (batch,) on the CPU -> (batch, num_samples); samples beyond a row's length are
    ignored.

    Args:
        mode: `pad` with zeros; `repeat` and cut; `repeat_pad`: complete repeats, then zeros (LAION-CLAP's `repeatpad`).
    """
    lengths = lengths.clamp(max=num_samples)[:, None].to(waveform.device, non_blocking=True)
    time = torch.arange(num_samples, device=waveform.device)[None]
    if mode == "pad":
        padded = F.pad(waveform, (0, num_samples - waveform.shape[1]))  # a negative pad cuts
        return torch.where(time < lengths, padded, 0.0)
    repeated = waveform.gather(1, time % lengths)
    repeats = torch.full_like(lengths, num_samples) // lengths  # torch.onnx has no number // tensor
    return repeated if mode == "repeat" else torch.where(time < repeats * lengths, repeated, 0.0)


def int16_round_trip(waveform: Tensor) -> Tensor:
    """Clip to [-1, 1] and truncate to 16 bits, as LAION-CLAP's file loader does."""
    return (waveform.clamp(-1, 1) * 32767).trunc() / 32767


def mel_frequencies(count: int, *, f_min: float, f_max: float, mel_scale: str) -> np.ndarray:
    """Frequencies in Hz (count,) that are evenly spaced in mel.

    `htk` is logarithmic throughout (O'Shaughnessy 1987), `slaney` linear below 1 kHz (Slaney 1998).
    """
    ends = np.array([f_min, f_max], dtype=float)
    if mel_scale == "htk":
        low, high = 2595.0 * np.log10(1.0 + ends / 700.0)
        return 700.0 * (10.0 ** (np.linspace(low, high, count) / 2595.0) - 1.0)
    width, corner, step = 200.0 / 3, 1000.0, np.log(6.4) / 27.0  # Hz per mel below the corner, in Hz; log(Hz) per mel
    above = corner / width + np.log(np.maximum(ends, corner) / corner) / step
    low, high = np.where(ends >= corner, above, ends / width)
    mels = np.linspace(low, high, count)
    return np.where(mels >= corner / width, corner * np.exp(step * (mels - corner / width)), width * mels)


def mel_filters(
    sample_rate: int,
    *,
    n_fft: int,
    n_mels: int,
    f_min: float,
    f_max: float,
    mel_scale: str,
    dtype: type[np.floating] = np.float32,
) -> np.ndarray:
    """Triangular mel filters (n_mels, n_fft // 2 + 1), bit for bit those of librosa, with which models are published.

    librosa itself requires numba, which does not start where its files cannot be cached. `slaney` filters are
    normalised to equal area, `htk` filters have a peak of 1.
    """
    bands = mel_frequencies(n_mels + 2, f_min=f_min, f_max=f_max, mel_scale=mel_scale)
    ramps = bands[:, None] - np.fft.rfftfreq(n_fft, d=1.0 / sample_rate)
    rising, falling = -ramps[:-2] / np.diff(bands)[:-1, None], ramps[2:] / np.diff(bands)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling)).astype(dtype)
    if mel_scale == "slaney":
        filters = (filters * (2.0 / (bands[2:] - bands[:-2]))[:, None]).astype(dtype)
    if num_empty := int((filters.max(axis=1) == 0).sum()):
        warnings.warn(
            f"{num_empty} of n_mels={n_mels} mel filters contain no bin of n_fft={n_fft}; "
            "lower audio_encoder.frontend.n_mels or raise audio_encoder.frontend.n_fft",
            stacklevel=2,
        )
    return filters


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Matrix products in float32 with all its digits, whatever `trainer.tf32` is."""
    matmul = torch.backends.cuda.matmul
    if not matmul.allow_tf32:
        yield
        return
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = True


class LogMelSpectrogram(nn.Module):
    """Log-mel spectrogram in dB, computed on the waveform's device, in float32 outside autocast.

    waveform (batch, samples) -> log_mel (batch, time, n_mels), time = samples // hop_length + 1.
    10 log10(max(mel, amin)) of the power spectrum: Hann window, centred, reflect-padded.

    Args:
        sample_rate: Hz of the waveforms.
        window: seconds of the encoder's input.
        fill: how a shorter clip is filled up to the window: `repeat_pad`, `repeat` or `pad` (see `fill_waveform`).
        hop_length: samples between frames; 480 at 48 kHz is 10 ms.
        f_max: upper band edge, Hz.
        mel_scale: `slaney` (area-normalised filters) or `htk` (none); published fused models use `htk`.
        amin: lower bound of the power, 1e-10 (-100 dB) in the published models. From random weights HTS-AT learns
            faster at 1e-5; at lower values its tokens mainly separate silence from sound.
        int16: round the waveform to 16 bits first, as LAION-CLAP does with files.

    Raises:
        ValueError: f_max is above half the rate or below f_min, the window is shorter than half of n_fft, or the
            fill or the mel scale is unknown.
    """

    # Subclasses in clap/published/frontends.py override these two and make_window.
    dtype = torch.float32  # of the spectrum
    filter_rate: int | None = None  # Hz for which the filters are computed; None: sample_rate

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
        filter_rate = self.filter_rate or sample_rate
        if f_max > filter_rate / 2:
            raise ValueError(f"f_max={f_max} is above half of {filter_rate} Hz; set audio_encoder.frontend.f_max")
        if not 0 <= f_min < f_max:
            raise ValueError(f"f_min={f_min} is not between 0 and f_max={f_max}; set audio_encoder.frontend.f_min")
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
        return torch.tensor(0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, self.n_fft + 1)[:-1]))

    def make_filters(self) -> Tensor:
        """Mel filters (n_fft // 2 + 1, n_mels)."""
        filters = mel_filters(
            self.filter_rate or self.sample_rate,
            n_fft=self.n_fft,
            n_mels=self.n_mels,
            f_min=self.f_min,
            f_max=self.f_max,
            mel_scale=self.mel_scale,
            dtype=np.float64 if self.dtype == torch.float64 else np.float32,
        )
        return torch.tensor(filters.T.copy())

    @without_tf32()
    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(self, waveform: Tensor, *, center: bool = True) -> Tensor:
        """`center=False`: the waveform is padded already."""
        waveform = (int16_round_trip(waveform.float()) if self.int16 else waveform).to(self.dtype)
        spectrum = torch.stft(
            waveform, self.n_fft, self.hop_length, window=self.hann, center=center, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (batch, n_fft // 2 + 1, time); no square root
        return 10 * (power.transpose(1, 2) @ self.mel).clamp(min=self.amin).log10().float()

    def whole_clip(self, waveform: Tensor) -> Tensor:
        """Waveform (samples,) of any duration -> log_mel (time, n_mels), in blocks of frames if it is long."""
        half = self.n_fft // 2
        num_frames = (len(waveform) + 2 * half - self.n_fft) // self.hop_length + 1
        if num_frames <= BLOCK:
            return self(waveform[None])[0]
        blocks = []
        for frames in torch.arange(num_frames).tensor_split(-(-num_frames // BLOCK)):  # of nearly equal length
            start = int(frames[0]) * self.hop_length - half
            end = int(frames[-1]) * self.hop_length - half + self.n_fft
            block = waveform[None, max(0, start) : end]
            padding = (max(0, -start), max(0, end - len(waveform)))
            blocks.append(self(F.pad(block, padding, mode="reflect"), center=False)[0])
        return torch.cat(blocks)

    def whole_clips(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """As `whole_clip` for several waveforms (samples,); those of similar duration share a spectrum.

        The end of each is reflected, so that its log-mel is that of the clip alone.
        """
        half, log_mels = self.n_fft // 2, {}
        rows = sorted(range(len(waveforms)), key=lambda row: -len(waveforms[row]))
        while rows:
            size = max(1, BLOCK // (len(waveforms[rows[0]]) // self.hop_length + 1))
            group, rows = rows[:size], rows[size:]
            if len(group) == 1:
                log_mels[group[0]] = self.whole_clip(waveforms[group[0]])
                continue
            clips = [F.pad(waveforms[row][None], (half, half), mode="reflect")[0] for row in group]
            for row, log_mel in zip(group, self(pad_sequence(clips, batch_first=True), center=False), strict=True):
                log_mels[row] = log_mel[: (len(waveforms[row]) + 2 * half - self.n_fft) // self.hop_length + 1]
        return [log_mels[row] for row in range(len(waveforms))]

    def full_window(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms (batch, samples), lengths (batch,) on the CPU, up to the window -> (batch, num_frames, n_mels)."""
        return self(fill_waveform(waveform, lengths, self.num_samples, self.fill))


class SpecAugment(nn.Module):
    """Zero random bands of time and frequency in training (Park et al. 2019), independently for each clip.

    log_mel (batch, views, time, n_mels) -> same.

    Args:
        time_mask, frequency_mask: longest band, in frames and mel bins; 0 disables masks on that axis.
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
        masked = log_mel.transpose(2, 3)  # (batch, views, n_mels, time), as torchaudio expects
        for _ in range(self.num_masks):
            masked = self.frequency(self.time(masked))
        return masked.transpose(2, 3)

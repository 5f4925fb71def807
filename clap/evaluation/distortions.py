"""Distortions of a waveform at a level: noise, gain, low-pass, lossy coding, reverberation, time shift, length.

Each is exact in definition, see docs/robustness.md. A distortion is a function of waveform, level and, where it is
random, of seed and clip id: neither the order of the clips nor the number of workers changes it. Imports no torch.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from scipy import fft, signal

from clap.config.values import suggest

FRAME = 0.02  # seconds, of the frames whose power is compared
ACTIVE = 1e-4  # power relative to that of the loudest frame, -40 dB: softer frames are pauses
LOWEST_NOISE = 20.0  # Hz; pink noise has no lower frequencies, which nobody hears
FILTER_ORDER = 4  # run forward and backward
CODED_BLOCK = 2**16  # samples that are encoded at once
MPEG_DELAY = 576 + 529  # samples, of LAME's encoder and of a decoder
MPEG1_BITRATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s of layer III
MPEG2_BITRATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG_RATES = {  # Hz -> bitrates
    **dict.fromkeys((32000, 44100, 48000), MPEG1_BITRATES),
    **dict.fromkeys((16000, 22050, 24000), MPEG2_BITRATES),
    **dict.fromkeys((8000, 11025, 12000), MPEG2_BITRATES[:8]),
}
MOST_DB = 120.0  # of a level; float32 has 150 dB between full scale and its rounding error
Apply = Callable[[np.ndarray, float, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Distortion:
    """A change of a waveform, whose strength is its level.

    Attributes:
        title: in figures.
        axis: the level and its unit, in figures.
        metric: name of the metric at a level, with `{}` for the level.
        definition: in words, for the protocol.
        apply: waveform (samples,) float32, level, Hz, random generator -> changed waveform.
        low, high: bounds of a level.
        choices: the levels, of a distortion without numbers.
        is_falling: whether a lower level is a stronger distortion; figures have the strongest on the right.
        neutral: the level that changes nothing, if there is one; figures have the clean number there.
        is_log: whether figures have a logarithmic axis.
    """

    title: str
    axis: str
    metric: str
    definition: str
    apply: Apply
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    is_falling: bool = False
    neutral: float | None = None
    is_log: bool = False


def active_power(waveform: np.ndarray, sample_rate: int) -> float:
    """Mean power of the frames of 20 ms within 40 dB of the loudest one; 0 for digital silence."""
    size = max(1, round(FRAME * sample_rate))
    frames = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
    power = np.square(frames).mean(axis=1, dtype=np.float64)
    return float(power[power >= ACTIVE * power.max()].mean())


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr: float, sample_rate: int) -> np.ndarray:
    """Waveform with noise whose mean power is the active power of the waveform divided by 10^(snr / 10)."""
    power = active_power(waveform, sample_rate) / 10 ** (snr / 10)
    return waveform + noise * np.float32(math.sqrt(power / max(np.square(noise).mean(dtype=np.float64), 1e-30)))


def white_noise(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return add_noise(waveform, rng.standard_normal(len(waveform), dtype=np.float32), level, sample_rate)


def pink_noise(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    size = fft.next_fast_len(max(len(waveform), sample_rate), real=True)
    spectrum = fft.rfft(rng.standard_normal(size, dtype=np.float32))
    frequency = fft.rfftfreq(size, 1 / sample_rate)
    spectrum[frequency < LOWEST_NOISE] = 0
    spectrum /= np.sqrt(np.maximum(frequency, LOWEST_NOISE), dtype=np.float32)
    return add_noise(waveform, fft.irfft(spectrum, size)[: len(waveform)], level, sample_rate)


def gain(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return waveform * np.float32(10 ** (level / 20))


def clipping(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return gain(waveform, level, sample_rate, rng).clip(-1, 1)


def low_pass(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    if level >= sample_rate / 2:
        return waveform
    sections = signal.butter(FILTER_ORDER, level, fs=sample_rate, output="sos")
    return signal.sosfiltfilt(sections, waveform, padlen=min(6 * FILTER_ORDER, len(waveform) - 1))


def mp3(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    bitrates = MPEG_RATES[sample_rate]
    low, high = bitrates[0], 64 if sample_rate < 16000 else bitrates[-1]
    compression = min((high - level) / (high - low), 0.999)  # libsndfile refuses 1
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
    decoded = code(waveform, sample_rate, compression_level=compression, **options)
    if len(decoded) > len(waveform):  # at low bitrates, no frame has room for LAME's tag, which states the delay
        decoded = decoded[MPEG_DELAY:]
    return decoded


def ogg(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return code(waveform, sample_rate, format="OGG", subtype="VORBIS", compression_level=1 - level / 10)


def code(waveform: np.ndarray, sample_rate: int, **options: str | float) -> np.ndarray:
    """A waveform after encoding and decoding by libsndfile, in memory.

    Args:
        options: of soundfile.SoundFile, such as format and compression_level.
    """
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", samplerate=sample_rate, channels=1, **options) as file:
        for start in range(0, len(waveform), CODED_BLOCK):
            file.write(waveform[start : start + CODED_BLOCK])
    content.seek(0)
    return soundfile.read(content, dtype="float32")[0]


def reverberation(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    response = make_impulse_response(level, sample_rate, rng)
    return signal.oaconvolve(waveform, response)[: len(waveform)]


def make_impulse_response(rt60: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Direct sound, then white noise that decays by 60 dB in `rt60` seconds and has its energy; (samples,) of energy 1.

    Statistical model of Polack 1988; Moorer 1979.
    """
    time = np.arange(1, max(2, round(rt60 * sample_rate))) / sample_rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail /= math.sqrt(np.square(tail).sum())
    return (np.concatenate([[1.0], tail]) / math.sqrt(2)).astype(np.float32)


def time_shift(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return np.roll(waveform, round(level * sample_rate))


def first(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return waveform[: round(level * sample_rate)]


def middle(waveform: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    count = min(round(level * sample_rate), len(waveform))
    start = (len(waveform) - count) // 2
    return waveform[start : start + count]


def unchanged(waveform: np.ndarray, level: str, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    return waveform


SNR = "signal-to-noise ratio (dB)"
DISTORTIONS = {
    "white_noise": Distortion(
        title="White noise",
        axis=SNR,
        metric="white_noise_{}_db",
        definition="Gaussian white noise; its mean power is the mean power of the clip's frames of 20 ms within 40 dB "
        "of the loudest one, divided by 10^(SNR / 10)",
        apply=white_noise,
        low=-MOST_DB,
        high=MOST_DB,
        is_falling=True,
    ),
    "pink_noise": Distortion(
        title="Pink noise",
        axis=SNR,
        metric="pink_noise_{}_db",
        definition="as white_noise, with a power spectrum of 1 / f from 20 Hz up",
        apply=pink_noise,
        low=-MOST_DB,
        high=MOST_DB,
        is_falling=True,
    ),
    "gain": Distortion(
        title="Gain",
        axis="gain (dB)",
        metric="gain_{}_db",
        definition="samples times 10^(gain / 20), without clipping",
        apply=gain,
        low=-MOST_DB,
        high=MOST_DB,
        neutral=0.0,
    ),
    "clipping": Distortion(
        title="Gain and clipping",
        axis="gain before clipping (dB)",
        metric="clipping_{}_db",
        definition="samples times 10^(gain / 20), limited to [-1, 1]",
        apply=clipping,
        low=-MOST_DB,
        high=MOST_DB,
    ),
    "low_pass": Distortion(
        title="Low-pass",
        axis="cutoff (Hz)",
        metric="low_pass_{}_hz",
        definition="Butterworth filter of order 4 forward and backward: zero phase, -6 dB at the cutoff; unchanged for "
        "a cutoff from half the sample rate up",
        apply=low_pass,
        low=20.0,
        is_falling=True,
        is_log=True,
    ),
    "mp3": Distortion(
        title="MP3",
        axis="bitrate (kbit/s)",
        metric="mp3_{}_kbps",
        definition="MPEG layer III by LAME in libsndfile, mono at the model's sample rate and a constant bitrate, "
        "decoded without its delay",
        apply=mp3,
        low=8.0,
        high=320.0,
        is_falling=True,
        is_log=True,
    ),
    "ogg": Distortion(
        title="Ogg Vorbis",
        axis="quality (of oggenc)",
        metric="ogg_quality_{}",
        definition="Vorbis by libvorbis in libsndfile, mono at the model's sample rate; quality as of oggenc",
        apply=ogg,
        low=0.0,
        high=10.0,
        is_falling=True,
    ),
    "reverberation": Distortion(
        title="Reverberation",
        axis="reverberation time RT60 (s)",
        metric="reverberation_{}_s",
        definition="convolution with direct sound, then Gaussian white noise times 10^(-3 t / RT60) up to RT60, both "
        "of equal energy and together of energy 1; cut to the clip's length",
        apply=reverberation,
        low=0.01,
        high=20.0,
        is_log=True,
    ),
    "time_shift": Distortion(
        title="Time shift",
        axis="shift (s)",
        metric="time_shift_{}_s",
        definition="circular: samples are rotated towards the end, the last ones come first",
        apply=time_shift,
        low=0.001,
        is_log=True,
    ),
    "first": Distortion(
        title="First seconds only",
        axis="length (s)",
        metric="first_{}_s",
        definition="the first seconds of the clip; shorter clips are whole",
        apply=first,
        low=0.02,
        is_falling=True,
        is_log=True,
    ),
    "middle": Distortion(
        title="Middle seconds only",
        axis="length (s)",
        metric="middle_{}_s",
        definition="the middle seconds of the clip; shorter clips are whole",
        apply=middle,
        low=0.02,
        is_falling=True,
        is_log=True,
    ),
    "windows": Distortion(
        title="Windows of longer clips",
        axis="policy",
        metric="windows_{}",
        definition="waveforms are unchanged; mean: outputs for evenly spaced windows that cover the clip are averaged",
        apply=unchanged,
        choices=("mean",),
    ),
}


@dataclass(frozen=True)
class Condition:
    """A distortion at a level, as the `distort` of a ClapDataset.

    Args:
        name: key of DISTORTIONS.
        seed: of all clips; noise and impulse response of a clip also depend on its id and the distortion, and are equal
            at all levels.
    """

    name: str
    level: float | str
    seed: int = 0

    @property
    def metric(self) -> str:
        """`white_noise_20_db`."""
        return DISTORTIONS[self.name].metric.format(format_level(self.level))

    def __call__(self, waveform: np.ndarray, sample_rate: int, clip_id: str) -> np.ndarray:
        """Waveform (samples,) -> distorted float32, of equal length unless the distortion is of the length."""
        key = json.dumps([self.seed, self.name, clip_id]).encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest()))
        changed = DISTORTIONS[self.name].apply(waveform, self.level, sample_rate, rng)
        if self.name in ("mp3", "ogg"):
            changed = np.pad(changed[: len(waveform)], (0, max(0, len(waveform) - len(changed))))
        return np.ascontiguousarray(changed, dtype=np.float32)


def format_level(level: float | str) -> str:
    return level if isinstance(level, str) else f"{level:g}"


def parse_metric(metric: str) -> tuple[str, float | str]:
    """Distortion and level of the metric of a condition; ValueError if it is of none."""
    for name, found in DISTORTIONS.items():
        before, after = found.metric.split("{}")
        if metric.startswith(before) and metric.endswith(after):
            level = metric.removeprefix(before).removesuffix(after)
            return name, level if found.choices else float(level)
    raise ValueError(f"{metric} is not a metric of a distortion; the distortions are {', '.join(DISTORTIONS)}")


def check_levels(name: str, levels: Sequence[float | str], key: str) -> None:
    """ValueError if levels are of an unknown distortion, out of its range, not numbers, or repeated.

    Args:
        key: config key of the levels, for the message.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"{key}: {name!r} is not one of {', '.join(DISTORTIONS)}{suggest(str(name), DISTORTIONS)}")
    found = DISTORTIONS[name]
    if not isinstance(levels, Sequence) or isinstance(levels, str) or not levels:
        raise ValueError(f"{key}={levels!r} must be a list of levels: {found.axis}")
    for level in levels:
        if found.choices and level not in found.choices:
            raise ValueError(f"{key}: {level!r} is not one of {', '.join(found.choices)}")
        if not found.choices and not is_within(level, found.low, found.high):
            ends = (("from", found.low), ("to", found.high))
            bounds = "".join(f" {word} {bound:g}" for word, bound in ends if math.isfinite(bound))
            raise ValueError(f"{key}: {level!r} must be a number{bounds}: {found.axis}")
    if len(set(map(format_level, levels))) < len(levels):
        raise ValueError(f"{key}={list(levels)} repeats a level, to six digits; remove one")


def is_within(level: object, low: float, high: float) -> bool:
    """Whether a level is a finite number between two bounds."""
    return type(level) in (int, float) and math.isfinite(level) and low <= level <= high


def check_bitrates(levels: Sequence[float], sample_rate: int, key: str) -> None:
    """ValueError if MP3 does not have the sample rate of the waveforms, or the bitrates at this rate."""
    if sample_rate not in MPEG_RATES:
        known = ", ".join(map(str, sorted(MPEG_RATES)))
        raise ValueError(
            f"MP3 has the sample rates {known} Hz, the model has {sample_rate} Hz; remove mp3 from the distortions"
        )
    if wrong := [level for level in levels if level not in MPEG_RATES[sample_rate]]:
        known = ", ".join(map(str, MPEG_RATES[sample_rate]))
        raise ValueError(
            f"{key}: {wrong[0]:g} kbit/s is not a bitrate of MP3 at {sample_rate} Hz; the bitrates are {known}"
        )

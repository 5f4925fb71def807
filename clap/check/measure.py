"""Measures recordings by decoding them completely, one piece at a time."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clap.corpus import Clip, Corpus
from clap.progress import progress_bar
from clap.waveform import AudioError, Member, check_samples, mix_down, open_recording, read_blocks

WINDOW = 0.1  # seconds over which the level is averaged
FULL_SCALE = 32767 / 32768  # largest sample of 16 bits
PIECE = 100  # windows decoded at once; memory does not grow with the duration
RENDER_RATE = 16_000  # Hz, for clips that their corpus renders


@dataclass(frozen=True)
class Measures:
    """Measures of a decoded recording.

    Attributes:
        duration: seconds.
        rate, channels: sample rate in Hz and channels of the file; None for a clip without a file.
        level: dBFS, RMS of the loudest 0.1 s of the mono mix after mean removal; -inf for digital silence.
        clipped: share of samples at full scale.
        digest: hash of the samples of the mono mix, independent of container, lossless codec and tags.
    """

    duration: float
    rate: int | None
    channels: int | None
    level: float
    clipped: float
    digest: str


def measure_all(items: Sequence[tuple[Corpus, Clip]], *, workers: int, name: str) -> list[Measures | str]:
    """Measures of each clip, or why it has none: "missing" or a decoding error.

    Args:
        name: label of the progress bar.
    """
    pool = ThreadPoolExecutor(workers)  # decoding and numpy release the GIL
    try:
        results = pool.map(lambda item: measure_clip(*item), items)
        return list(progress_bar(results, total=len(items), unit="clip", desc=name))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, do not wait for the queued clips


def measure_clip(corpus: Corpus, clip: Clip) -> Measures | str:
    if clip.path is not None and not clip.path.is_file():
        return "missing"
    try:
        recording = corpus.locate(clip)
        return measure_rendered(corpus, clip) if recording is None else measure_file(recording)
    except AudioError as error:
        return str(error).removeprefix(f"{clip.recording}: ")


def measure_file(path: Path | Member) -> Measures:
    """Measure a recording by decoding it completely.

    Raises:
        AudioError: under the conditions of `load_waveform`.
    """
    with open_recording(path) as (file, num_frames):
        window = max(1, round(WINDOW * file.samplerate))
        full_scale = 127 / 128 if file.subtype == "PCM_U8" else FULL_SCALE
        digest, frames, clipped, power = hashlib.blake2b(digest_size=16), 0, 0, 0.0
        for piece in read_blocks(path, file, 0, num_frames, size=PIECE * window):
            mono = mix_down(piece)
            check_samples(path, mono)
            digest.update((mono + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
            frames += len(mono)
            clipped += np.count_nonzero(np.abs(piece) >= full_scale)
            power = max(power, max_window_power(mono, window))
        share = clipped / (frames * file.channels)
        return Measures(
            frames / file.samplerate, file.samplerate, file.channels, to_decibels(power), share, digest.hexdigest()
        )


def measure_rendered(corpus: Corpus, clip: Clip) -> Measures:
    """Measure a clip without a file, as rendered by its corpus."""
    waveform = corpus.load(clip, sample_rate=RENDER_RATE, max_duration=None)
    level = to_decibels(max_window_power(waveform, round(WINDOW * RENDER_RATE)))
    digest = hashlib.blake2b(waveform.tobytes(), digest_size=16).hexdigest()
    clipped = float(np.mean(np.abs(waveform) >= FULL_SCALE))
    return Measures(len(waveform) / RENDER_RATE, None, None, level, clipped, digest)


def max_window_power(waveform: np.ndarray, window: int) -> float:
    """Largest variance over consecutive windows of `window` samples; over all samples if there are fewer."""
    whole = len(waveform) // window * window
    if not whole:
        return float(waveform.var())
    return float(waveform[:whole].reshape(-1, window).var(axis=1).max())


def to_decibels(power: float) -> float:
    return float(10 * np.log10(power)) if power > 0 else -np.inf

"""Measures of recordings in different containers and of different durations."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_tone

from clap.check.measure import Measures, measure_all, measure_clip, measure_file
from clap.corpus import Clip, Corpus

RATE = 8_000


def write(path: Path, waveform: np.ndarray, rate: int = RATE, **options) -> Path:
    soundfile.write(path, waveform, rate, **options)
    return path


def measure(folder: Path, waveform: np.ndarray, **options) -> Measures:
    return measure_file(write(folder / "a.wav", waveform, **options))


def samples(duration: float = 1.0) -> np.ndarray:
    return (make_tone(300.0, duration, sample_rate=RATE) * 32767).astype(np.int16)


def test_duration_rate_and_channels_match_the_file(tmp_path: Path):
    found = measure(tmp_path, np.stack([samples()] * 2, axis=1))
    assert (found.duration, found.rate, found.channels) == (1.0, RATE, 2)


def test_level_is_the_rms_of_the_loudest_tenth_of_a_second(tmp_path: Path):
    waveform = np.zeros(12 * RATE)
    burst = slice(11 * RATE, 11 * RATE + RATE // 10)  # in the second piece that is decoded
    waveform[burst] = 0.5 * np.sin(2 * np.pi * 200 * np.arange(RATE // 10) / RATE)
    assert measure(tmp_path, waveform, subtype="FLOAT").level == pytest.approx(20 * np.log10(0.5 / 2**0.5), abs=0.01)


@pytest.mark.parametrize("waveform", [np.zeros(RATE), np.full(RATE, 0.25)])
def test_constant_samples_are_silent(tmp_path: Path, waveform: np.ndarray):
    assert measure(tmp_path, waveform).level == -np.inf


def test_clip_shorter_than_the_window_has_a_level(tmp_path: Path):
    assert -20 < measure(tmp_path, samples(0.05)).level < -5


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_share_of_samples_at_full_scale(tmp_path: Path, subtype: str):
    waveform = np.tile([1.0, -1.0, 0.5, 0.0], RATE // 4)
    assert measure(tmp_path, waveform, subtype=subtype).clipped == 0.5


@pytest.mark.parametrize("options", [{"subtype": "PCM_24"}, {"subtype": "FLOAT"}, {"rate": 2 * RATE}])
def test_digest_is_independent_of_the_wav_subtype(tmp_path: Path, options: dict):
    floats = samples(11.0) / np.float32(32768)
    assert measure(tmp_path, floats, **options).digest == measure(tmp_path, samples(11.0)).digest


@pytest.mark.parametrize("suffix", ["flac", "aiff", "w64"])
def test_digest_is_independent_of_the_container(tmp_path: Path, suffix: str):
    other = measure_file(write(tmp_path / f"b.{suffix}", samples(), subtype="PCM_16"))
    assert other.digest == measure(tmp_path, samples()).digest


def test_one_changed_sample_changes_the_digest(tmp_path: Path):
    changed = samples()
    changed[-1] += 1
    assert measure(tmp_path, changed).digest != measure(tmp_path, samples()).digest


def test_decoding_error_does_not_repeat_the_path(tmp_path: Path):
    path = write(tmp_path / "a.wav", samples())
    path.write_bytes(path.read_bytes()[:-1000])
    found = measure_clip(Corpus(), Clip("a", (), path))
    assert found == "truncated, its header announces 16000 bytes and 15000 are there"


def test_absent_file_is_missing(tmp_path: Path):
    assert measure_clip(Corpus(), Clip("a", (), tmp_path / "a.wav")) == "missing"


def test_results_keep_the_order_of_the_clips(tmp_path: Path):
    clips = [Clip(str(i), (), write(tmp_path / f"{i}.wav", samples(0.1 * (i + 1)))) for i in range(6)]
    found = measure_all([(Corpus(), clip) for clip in clips], workers=3, name="")
    assert [item.duration for item in found] == pytest.approx([0.1 * (i + 1) for i in range(6)])

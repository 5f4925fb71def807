"""Inputs of inference: durations from headers, batches of clips of similar duration."""

import math

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tone
from torch.testing import assert_close

from clap.containers import find_mpeg_frames
from clap.recordings import load_batches, measure_duration, plan_batches
from clap.waveform import AudioError


def test_duration_is_that_of_the_header(tones):
    assert [measure_duration(path, None) for path in tones] == [0.5 * (i + 1) for i in range(8)]


def test_duration_of_a_waveform_is_at_its_rate():
    assert measure_duration(np.zeros((2, 4000)), 8000) == 0.5
    assert measure_duration(torch.zeros(4000), 8000) == 0.5


@pytest.mark.parametrize("rate", [None, 0, -8000, float("nan"), float("inf"), 4e9])
def test_duration_of_a_waveform_needs_its_rate(rate):
    with pytest.raises(ValueError, match=f"sample_rate={rate}: waveforms need sample_rate".replace("+", ".")):
        measure_duration(np.zeros(4000), rate)


@pytest.mark.parametrize("name", ["absent.wav", "noise.wav", "headless.raw"])
def test_file_without_header_comes_first(tmp_path, name):
    if name != "absent.wav":
        (tmp_path / name).write_bytes(b"no audio" * 100)
    assert measure_duration(tmp_path / name, None) == math.inf


def test_duration_of_an_mp3_without_header_is_that_of_its_frames(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, make_tone(300.0, 3.0), 16_000, bitrate_mode="VARIABLE", compression_level=0.8)
    start, size = next(find_mpeg_frames(path.read_bytes()))
    path.write_bytes(path.read_bytes()[start + size :])
    assert soundfile.info(path).duration < 2.5 < 3.0 <= measure_duration(path, None) < 3.2


def test_batches_are_of_similar_duration_longest_first():
    assert list(plan_batches([1, 4, 2, 5, 3], 2, window=None)) == [[3, 1], [4, 2], [0]]


def test_clips_longer_than_the_window_keep_their_order():
    assert list(plan_batches([9, 3, 7, 20], 4, window=5.0)) == [[0, 2, 3, 1]]


def test_batches_of_long_clips_are_smaller():
    assert list(plan_batches([1, 120, 3600, 30, 120], 4, window=None)) == [[2], [1, 4], [3, 0]]


def test_batch_size_is_positive():
    with pytest.raises(ValueError, match="batch_size=0 is not 1 or more"):
        list(plan_batches([1.0], 0, window=None))


def test_batches_include_the_errors_of_invalid_files(tones, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    loaded = list(load_batches([tones[0], bad, tones[3]], None, batch_size=2, target_rate=16_000, window=1.0))
    assert [list(waveforms) for waveforms, _ in loaded] == [[2], [0]]
    assert isinstance(loaded[0][1][1], AudioError) and "bad.wav" in str(loaded[0][1][1])


@pytest.mark.parametrize("window", [None, 2.0])
def test_clips_longer_than_the_longest_are_errors(tones, window):
    waveform = make_tone(300.0, 3.0)
    batches = load_batches(
        [tones[0], tones[7], waveform], 16_000, batch_size=1, target_rate=16_000, window=window, longest=2.0
    )
    errors = {position: str(error) for _, found in batches for position, error in found.items()}
    if window is not None:
        assert not errors
    else:
        assert "7.wav: 4.0 s long, the longest clip is 2 s" in errors[1] and "waveform 2: 3.0 s" in errors[2]


def test_waveform_in_another_byte_order_or_precision_is_the_same():
    waveform = make_tone(300.0, 1.0)
    variants = [waveform.astype(kind) for kind in (">f4", "<f8", ">f8")]
    [(loaded, _)] = load_batches([waveform, *variants], 16_000, batch_size=4, target_rate=16_000, window=None)
    assert all(torch.equal(loaded[0], other) for other in loaded.values())


def test_window_is_the_middle_of_a_longer_clip(tmp_path):
    waveform = make_tone(300.0, 3.0)
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, subtype="FLOAT")
    [(waveforms, _)] = load_batches(
        [tmp_path / "a.wav", waveform], 16_000, batch_size=2, target_rate=16_000, window=1.0
    )
    assert_close(waveforms[0], torch.from_numpy(waveform[16_000:32_000]))
    assert_close(waveforms[1], waveforms[0])

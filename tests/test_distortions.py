"""Distortions against their definitions: power, spectrum, attenuation, delay, decay, seeds."""

import numpy as np
import pytest

from clap.evaluation.distortions import (
    DISTORTIONS,
    Condition,
    active_power,
    check_bitrates,
    check_levels,
    code,
    make_impulse_response,
    parse_metric,
)

RATE = 16_000
LEVELS = dict.fromkeys(DISTORTIONS, 1.0) | {"low_pass": 1000.0, "mp3": 32.0, "windows": "mean"}


def make_sound(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """A second of noise between pauses."""
    waveform = np.zeros(round(seconds * rate), dtype=np.float32)
    middle = slice(len(waveform) // 4, 3 * len(waveform) // 4)
    waveform[middle] = 0.1 * np.random.default_rng(0).standard_normal(len(waveform[middle]))
    return waveform


def make_tone(frequency: float, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(rate) / rate).astype(np.float32)


def change(name: str, level: float, waveform: np.ndarray, *, clip_id: str = "a", rate: int = RATE) -> np.ndarray:
    return Condition(name, level)(waveform, rate, clip_id)


def find_lag(waveform: np.ndarray, changed: np.ndarray) -> int:
    """Samples by which a changed waveform is late."""
    spectrum = np.fft.rfft(changed) * np.fft.rfft(waveform).conj()
    lag = int(np.fft.irfft(spectrum, len(waveform)).argmax())
    return lag - len(waveform) * (lag > len(waveform) // 2)


@pytest.mark.parametrize("name", ["white_noise", "pink_noise"])
@pytest.mark.parametrize("snr", [20.0, -10.0])
def test_noise_has_the_ratio_to_the_power_of_the_sound_without_its_pauses(name: str, snr: float):
    waveform = make_sound()
    sound = waveform[waveform != 0].astype(np.float64)
    noise = change(name, snr, waveform).astype(np.float64) - waveform
    ratio = 10 * np.log10(np.square(sound).mean() / np.square(noise).mean())
    assert ratio == pytest.approx(snr, abs=0.05)


def test_active_power_ignores_frames_below_40_db():
    tone = make_tone(1000.0)
    soft, pause = tone * np.float32(10 ** (-35 / 20)), tone * np.float32(10 ** (-45 / 20))
    assert active_power(np.concatenate([tone, pause]), RATE) == pytest.approx(0.5, rel=1e-3)
    assert active_power(np.concatenate([tone, soft]), RATE) == pytest.approx(0.25, rel=1e-2)
    assert active_power(np.zeros(RATE, np.float32), RATE) == 0


def test_pink_noise_has_equal_power_in_each_octave_from_20_hz():
    waveform = np.concatenate([make_tone(1000.0)] * 20)
    power = np.abs(np.fft.rfft(change("pink_noise", 0.0, waveform) - waveform)) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / RATE)
    octaves = [power[(frequency >= low) & (frequency < 2 * low)].sum() for low in (100, 200, 400, 800, 1600, 3200)]
    assert max(octaves) / min(octaves) < 1.3
    assert power[frequency < 19].sum() < 1e-3 * power.sum()


def test_noise_is_equal_at_all_levels_and_differs_between_clips():
    waveform = make_sound()
    noise = change("white_noise", 20.0, waveform) - waveform
    louder = change("white_noise", 0.0, waveform) - waveform
    other = change("white_noise", 20.0, waveform, clip_id="b") - waveform
    np.testing.assert_allclose(louder, 10 * noise, atol=1e-5)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.05


def test_gain_multiplies_and_clipping_limits():
    waveform = np.array([0.1, -0.2, 0.05], np.float32)
    np.testing.assert_allclose(change("gain", 20.0, waveform), [1.0, -2.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(change("clipping", 20.0, waveform), [1.0, -1.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize(("frequency", "decibels"), [(250.0, 0.0), (1000.0, -6.02), (2000.0, -50.98)])
def test_low_pass_attenuates_above_the_cutoff(frequency: float, decibels: float):
    middle = slice(RATE // 4, 3 * RATE // 4)
    changed = change("low_pass", 1000.0, make_tone(frequency))[middle]
    assert 10 * np.log10(np.square(changed).mean() / 0.5) == pytest.approx(decibels, abs=0.6)


def test_low_pass_delays_nothing_and_keeps_all_below_half_the_sample_rate():
    waveform = make_sound()
    assert find_lag(waveform, change("low_pass", 2000.0, waveform)) == 0
    np.testing.assert_array_equal(change("low_pass", RATE / 2, waveform), waveform)


@pytest.mark.parametrize(("rate", "bitrate"), [(16000, 8), (16000, 32), (16000, 64), (48000, 32), (48000, 128)])
def test_mp3_is_aligned_with_the_clip(rate: int, bitrate: int):
    """At the lower bitrates no frame has room for the tag that states the delay."""
    waveform = make_sound(1.01, rate)
    waveform = change("low_pass", 1500.0, waveform, rate=rate)
    changed = change("mp3", bitrate, waveform, rate=rate)
    assert len(changed) == len(waveform)
    assert find_lag(waveform, changed) == 0
    assert 0 < np.square(changed - waveform).mean() < 0.3 * np.square(waveform).mean()


@pytest.mark.parametrize("rate", [16000, 48000])
def test_lower_quality_has_a_larger_error(rate: int):
    waveform = make_sound(1.0, rate)
    for name, levels in (("mp3", (32, 64, 128)), ("ogg", (0, 3, 10))):
        changed = [change(name, level, waveform, rate=rate) for level in levels]
        errors = [np.square(own - waveform).mean() for own in changed]
        assert errors == sorted(errors, reverse=True)
        assert find_lag(waveform, changed[-1]) == 0


def test_coding_is_repeatable_and_ogg_takes_long_clips():
    waveform = make_sound(20.0)
    once, again = (code(waveform, RATE, format="OGG", subtype="VORBIS", compression_level=0.5) for _ in range(2))
    assert len(once) == len(waveform)
    np.testing.assert_array_equal(once, again)


def test_impulse_response_decays_by_60_db_in_its_time():
    response = make_impulse_response(0.5, RATE, np.random.default_rng(0)).astype(np.float64)
    assert np.square(response).sum() == pytest.approx(1.0, abs=1e-6)
    assert response[0] ** 2 == pytest.approx(0.5, abs=1e-6)  # direct sound and tail have equal energy
    decay = 10 * np.log10(np.cumsum(np.square(response[1:])[::-1])[::-1])  # backward integration, Schroeder 1965
    at_5, at_35 = (int(np.argmax(decay <= decay[0] - drop)) for drop in (5, 35))
    assert 2 * (at_35 - at_5) / RATE == pytest.approx(0.5, rel=0.05)


def test_time_shift_is_circular_and_lengths_are_cut():
    waveform = np.arange(RATE, dtype=np.float32)
    np.testing.assert_array_equal(change("time_shift", 0.25, waveform), np.roll(waveform, 4000))
    np.testing.assert_array_equal(change("first", 0.25, waveform), waveform[:4000])
    np.testing.assert_array_equal(change("middle", 0.25, waveform), waveform[6000:10000])
    np.testing.assert_array_equal(change("middle", 2.0, waveform), waveform)


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("waveform", [np.zeros(RATE, np.float32), make_tone(440.0)[:320]], ids=["silent", "20 ms"])
def test_silent_and_short_clips_stay_finite_and_as_long(name: str, waveform: np.ndarray):
    changed = change(name, LEVELS[name], waveform)
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert len(changed) == len(waveform)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_metric_states_distortion_and_level(name: str):
    level = LEVELS[name] if DISTORTIONS[name].choices else -0.5
    assert parse_metric(Condition(name, level).metric) == (name, level)


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [
        ("white_noize", [10.0], "did you mean white_noise"),
        ("white_noise", [], "must be a list of levels"),
        ("white_noise", ["loud"], "'loud' must be a number"),
        ("ogg", [12.0], "12.0 must be a number from 0 to 10"),
        ("gain", [10.0, 10], "repeats a level"),
        ("windows", ["middle"], "'middle' is not one of mean"),
    ],
)
def test_wrong_levels_are_refused(name: str, levels: list, message: str):
    with pytest.raises(ValueError, match=message):
        check_levels(name, levels, "levels")


def test_bitrates_that_mp3_does_not_have_are_refused():
    check_bitrates([8.0, 128.0], 16000, "levels")
    with pytest.raises(ValueError, match="8 kbit/s is not a bitrate of MP3 at 48000 Hz"):
        check_bitrates([8.0], 48000, "levels")
    with pytest.raises(ValueError, match="the model has 26000 Hz"):
        check_bitrates([32.0], 26000, "levels")

"""Recordings are read as they are or refused by name; log-mels equal the published front-ends'."""

import warnings
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.testing import assert_close

from clap.audio import (
    FILL_MODES,
    AudioError,
    LogMelSpectrogram,
    SpecAugment,
    fill_waveform,
    int16_round_trip,
    load_waveform,
    mix_down,
)
from clap.published.frontends import MSClap2023LogMel, TorchaudioLogMel

RATE = 16000
LOSSLESS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("aiff", "PCM_16")]
LOSSY = [("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")]
FRONTENDS = {  # stored name: waves' name, arguments
    "laion_slaney48k": ("w48k", {"sample_rate": 48000, "hop_length": 480, "int16": True}),
    "laion_htk48k_fusion": (
        "w48k",
        {"cls": TorchaudioLogMel, "sample_rate": 48000, "hop_length": 480, "mel_scale": "htk", "int16": True},
    ),
    "hf_slaney48k_unpadded": ("w48k", {"sample_rate": 48000, "hop_length": 480}),
    "hf_htk48k_unpadded": ("w48k", {"sample_rate": 48000, "hop_length": 480, "mel_scale": "htk"}),
    "panns32k": ("w32k", {"sample_rate": 32000, "hop_length": 320}),
    "panns16k": ("w16k", {"sample_rate": 16000, "hop_length": 160, "n_fft": 512, "f_max": 8000.0}),
    "msclap2022_44k": ("w44k", {"sample_rate": 44100, "hop_length": 320}),
    "msclap2023_44k_audio_32k_filters": ("w44k", {"cls": MSClap2023LogMel, "sample_rate": 44100, "hop_length": 320}),
}
BANKS = {
    "melW_slaney_48k_1024_50_14000": {"sample_rate": 48000},
    "melW_slaney_44k_1024_50_14000": {"sample_rate": 44100},
    "melW_slaney_32k_1024_50_14000": {"sample_rate": 32000},
    "melW_slaney_16k_512_50_8000": {"sample_rate": 16000, "n_fft": 512, "f_max": 8000.0},
    "mel_htk_48k_1024_50_14000": {"sample_rate": 48000, "mel_scale": "htk"},
    "hf_mel_filters_slaney_f64": {"sample_rate": 48000},
    "hf_mel_filters_htk_f64": {"sample_rate": 48000, "mel_scale": "htk"},
}
Golden = Callable[[str], tuple[dict, dict[str, Tensor]]]


def sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """A tone in noise, (samples,) float32, peaks at about a half."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / RATE) + 0.05 * noise).astype(np.float32)


def make_frontend(cls: type[LogMelSpectrogram] = LogMelSpectrogram, **arguments: object) -> LogMelSpectrogram:
    return cls(**{"sample_rate": RATE, "window": 1.0, "hop_length": 160, "f_max": 8000.0, **arguments})


def cut_off(path: Path, num_bytes: int) -> Path:
    """Leave `num_bytes` of a file, or all but that many where it is negative."""
    path.write_bytes(path.read_bytes()[:num_bytes])
    return path


def refusal(path: Path, **arguments: object) -> str:
    """What an AudioError says of a file besides naming it."""
    with pytest.raises(AudioError) as raised:
        load_waveform(path, RATE, **arguments)
    name, _, reason = str(raised.value).partition(": ")
    assert name == str(path)
    return reason


# Log-mels


@pytest.mark.parametrize("clip", ["short", "silence"])
@pytest.mark.parametrize("name", FRONTENDS)
def test_log_mel_equals_published(golden: Golden, name: str, clip: str) -> None:
    rate, arguments = FRONTENDS[name]
    waveform = golden("waves")[1][f"wave/{rate}/{clip}"]
    expected = golden("frontends")[1][f"out/{name}/{clip}"]
    difference = (make_frontend(**{"f_max": 14000.0} | arguments)(waveform[None])[0] - expected).abs()
    assert difference.max() < 0.1 and difference.mean() < 2e-3  # dB, of another FFT


@pytest.mark.parametrize("name", BANKS)
def test_filter_bank_equals_published(golden: Golden, name: str) -> None:
    expected = golden("frontends")[1][f"const/{name}"].float()
    bank = LogMelSpectrogram(window=1.0, hop_length=160, **BANKS[name]).mel
    by_torchaudio = name.startswith("mel_htk")  # in float32, unlike librosa and transformers
    assert_close(bank, expected, rtol=0, atol=1e-5 if by_torchaudio else 1e-6)


def test_int16_round_trip_equals_published(golden: Golden) -> None:
    values = golden("frontends")[1]
    assert_close(int16_round_trip(values["in/int16_probe"]), values["out/int16_probe_float"], rtol=0, atol=0)


@pytest.mark.parametrize("mode", FILL_MODES)
def test_filling_equals_published(golden: Golden, mode: str) -> None:
    values = golden("frontends")[1]
    probe, expected = values["in/fill_probe"], values[f"out/fill_{mode.replace('_', '')}"]
    filled = fill_waveform(probe[None], torch.tensor([len(probe)]), len(expected), mode)
    assert_close(filled[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("mel_scale", "amin"), [("slaney", 1e-10), ("htk", 1e-10), ("slaney", 1e-3)])
def test_log_mel_equals_librosa(mel_scale: str, amin: float) -> None:
    waveform, htk = sound(RATE), mel_scale == "htk"
    mel = librosa.feature.melspectrogram(
        y=waveform, sr=RATE, n_fft=512, hop_length=160, n_mels=64, fmin=50, fmax=8000, htk=htk,
        norm=None if htk else "slaney", pad_mode="reflect",
    )  # fmt: skip
    expected = librosa.power_to_db(mel, ref=1.0, amin=amin, top_db=None).T
    log_mel = make_frontend(n_fft=512, mel_scale=mel_scale, amin=amin)(torch.from_numpy(waveform)[None])[0]
    assert_close(log_mel, torch.from_numpy(expected), rtol=0, atol=1e-3)


def test_log_mel_stays_float32_under_autocast() -> None:
    frontend, waveform = make_frontend(), torch.from_numpy(sound(RATE))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_mel = frontend(waveform)
    assert_close(log_mel, frontend(waveform), rtol=0, atol=0)


def test_log_mel_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_frontend()(torch.zeros(1, RATE))


def test_full_window_has_num_frames() -> None:
    frontend = make_frontend()
    log_mel = frontend.full_window(torch.zeros(2, 8000), torch.tensor([8000, 500]))
    assert log_mel.shape == (2, frontend.num_frames, frontend.n_mels)


@pytest.mark.parametrize("mode", FILL_MODES)
def test_filling_cuts_what_is_longer(mode: str) -> None:
    waveform = torch.arange(1.0, 13).view(1, 12)
    assert_close(fill_waveform(waveform, torch.tensor([12]), 10, mode), waveform[:, :10])


@pytest.mark.parametrize("mode", FILL_MODES)
def test_filling_reads_nothing_behind_the_length(mode: str) -> None:
    waveform = torch.tensor([[1.0, 2.0, 3.0, torch.nan, torch.nan]])
    assert fill_waveform(waveform, torch.tensor([3]), 10, mode).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"f_max": 8001.0}, "f_max=8001.0"),
        ({"f_max": 16000.0, "sample_rate": 30000}, "half of 30000"),
        ({"f_min": 9000.0}, "f_min=9000.0"),
        ({"f_min": -1.0}, "f_min=-1.0"),
        ({"fill": "loop"}, "repeat_pad, repeat, pad"),
        ({"mel_scale": "bark"}, "slaney or htk"),
        ({"window": 0.0}, "window=0.0"),
        ({"window": 0.03}, "480 samples"),
    ],
)
def test_frontend_refuses_what_cannot_be(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_frontend(**arguments)


# SpecAugment


def test_spec_augment_leaves_evaluation_alone() -> None:
    log_mel = torch.ones(2, 1, 100, 64)
    assert SpecAugment(time_mask=50, frequency_mask=30).eval()(log_mel) is log_mel


def test_spec_augment_zeroes_whole_bands_while_training() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(time_mask=20, frequency_mask=10, num_masks=1)(torch.ones(2, 1, 100, 64)) == 0
    frames, bins = masked.all(dim=3), masked.all(dim=2)  # (batch, views, time), (batch, views, n_mels)
    assert frames.any() and bins.any()
    assert torch.equal(masked, frames[..., None] | bins[:, :, None])


def test_spec_augment_masks_each_clip_by_itself() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(time_mask=50, frequency_mask=30)(torch.ones(2, 1, 100, 64))
    assert not torch.equal(masked[0], masked[1])


# Reading


@pytest.mark.parametrize(("suffix", "subtype"), LOSSLESS)
def test_lossless_formats_give_their_samples(tmp_path: Path, suffix: str, subtype: str) -> None:
    path, waveform = tmp_path / f"a.{suffix}", sound(RATE)
    soundfile.write(path, waveform, RATE, subtype=subtype)
    np.testing.assert_allclose(load_waveform(path, RATE), waveform, atol=2**-15)


@pytest.mark.parametrize(("suffix", "subtype"), LOSSY)
def test_lossy_formats_come_near_their_samples(tmp_path: Path, suffix: str, subtype: str) -> None:
    path, waveform = tmp_path / f"a.{suffix}", sound(RATE)
    soundfile.write(path, waveform, RATE, subtype=subtype, format="OGG" if suffix == "opus" else None)
    loaded = load_waveform(path, RATE)
    assert len(loaded) == RATE and np.corrcoef(loaded, waveform)[0, 1] > 0.9


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sound(RATE, 1), sound(RATE, 2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_waveform(tmp_path / "a.wav", RATE), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_mixing_down_is_the_mean_over_channels(channels: int) -> None:
    samples = sound(6000).reshape(-1, channels)
    np.testing.assert_array_equal(mix_down(samples), samples.mean(axis=1))


@pytest.mark.parametrize("file_rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_duration_and_the_tone(tmp_path: Path, file_rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * file_rate) / file_rate)
    soundfile.write(tmp_path / "a.wav", tone, file_rate, subtype="FLOAT")
    waveform = load_waveform(tmp_path / "a.wav", RATE)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    assert waveform.dtype == np.float32 and waveform.shape == (2 * RATE,)
    np.testing.assert_allclose(waveform[800:-800], expected[800:-800], atol=2e-3)


@pytest.mark.parametrize(("suffix", "subtype"), [*LOSSLESS, ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
def test_middle_part_is_that_of_the_whole(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(5 * RATE), RATE, subtype=subtype)
    whole = load_waveform(path, RATE)
    np.testing.assert_allclose(load_waveform(path, RATE, max_duration=1.0), whole[2 * RATE : 3 * RATE], atol=1e-4)


@pytest.mark.parametrize(("suffix", "subtype"), [*LOSSLESS, ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
def test_random_part_is_one_of_the_whole(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(5 * RATE), RATE, subtype=subtype)
    start = int(np.random.default_rng(3).integers(4 * RATE + 1))
    part = load_waveform(path, RATE, max_duration=1.0, rng=np.random.default_rng(3))
    np.testing.assert_allclose(part, load_waveform(path, RATE)[start : start + RATE], atol=1e-4)


def test_small_overshoot_is_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 3 * sound(RATE), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_waveform(tmp_path / "a.wav", RATE), 3 * sound(RATE))


def test_floats_on_the_scale_of_integers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 32767 * sound(RATE), RATE, subtype="FLOAT")
    assert "full scale is 1" in refusal(tmp_path / "a.wav")


# Bad files


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such" in refusal(tmp_path / "a.wav")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "no such" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_file_of_no_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    assert "0 bytes" in refusal(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_file_of_no_samples_is_refused(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", np.zeros(0), RATE)
    assert refusal(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(("suffix", "header"), [("wav", 44), ("flac", 44), ("ogg", 60), ("aiff", 44)])
def test_bare_header_is_refused(tmp_path: Path, suffix: str, header: int) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", sound(2 * RATE), RATE)
    assert refusal(cut_off(tmp_path / f"a.{suffix}", header))


@pytest.mark.parametrize("lost", [20000, 1000, 2])
@pytest.mark.parametrize(("suffix", "subtype"), [*LOSSLESS, ("mp3", "MPEG_LAYER_III")])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, subtype: str, lost: int) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(10 * RATE), RATE, subtype=subtype)
    assert refusal(cut_off(path, -(lost if suffix != "mp3" else max(lost, 500))))


@pytest.mark.parametrize("lost", [20000, 8000, 200, 2])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_truncated_ogg_is_refused(tmp_path: Path, subtype: str, lost: int) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, sound(20 * RATE), RATE, subtype=subtype)
    assert "last Ogg page" in refusal(cut_off(path, -lost))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "raw"])
def test_text_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_text("<html>404 Not Found</html>\n" * 50)
    assert "cannot be decoded" in refusal(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sample_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    waveform = sound(RATE)
    waveform[123] = value
    soundfile.write(tmp_path / "a.wav", waveform, RATE, subtype="FLOAT")
    assert "NaN" in refusal(tmp_path / "a.wav")


def test_less_than_a_frame_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(300), RATE)
    assert "shorter than one frame" in refusal(tmp_path / "a.wav")


def test_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(RATE), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4  # as ffmpeg writes to a pipe
    (tmp_path / "a.wav").write_bytes(content)
    assert len(load_waveform(tmp_path / "a.wav", RATE)) == RATE


@pytest.mark.parametrize("max_duration", [0.0, -1.0, 0.01, float("nan")])
def test_max_duration_below_a_frame_is_refused(tmp_path: Path, max_duration: float) -> None:
    with pytest.raises(ValueError, match="dataset.max_duration"):
        load_waveform(tmp_path / "a.wav", RATE, max_duration=max_duration)

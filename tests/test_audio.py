"""Log-mels equal those of the published front-ends; SpecAugment."""

import warnings
from collections.abc import Callable

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clap.audio import FILL_MODES, LogMelSpectrogram, SpecAugment, fill_waveform, int16_round_trip, mel_filters
from clap.published.frontends import MSClap2023LogMel, TorchaudioLogMel

RATE = 16000
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


@pytest.mark.filterwarnings("ignore:Empty filters", "ignore:.*filters contain no bin")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("f_min", "f_max"), [(0.0, 8000.0), (50.0, 7999.0), (1000.0, 4000.0), (20.0, 900.0)])
@pytest.mark.parametrize("mel_scale", ["slaney", "htk"])
def test_mel_filters_equal_librosa_bit_for_bit(mel_scale: str, f_min: float, f_max: float, dtype: type) -> None:
    for rate, n_fft, n_mels in [(16000, 512, 64), (32000, 1024, 64), (44100, 2048, 40), (48000, 1000, 16)]:
        htk = mel_scale == "htk"
        expected = librosa.filters.mel(
            sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, htk=htk,
            norm=None if htk else "slaney", dtype=dtype,
        )  # fmt: skip
        settings = {"n_fft": n_fft, "n_mels": n_mels, "f_min": f_min, "f_max": f_max, "mel_scale": mel_scale}
        np.testing.assert_array_equal(mel_filters(rate, **settings, dtype=dtype), expected, strict=True)


@pytest.mark.parametrize("n_fft", [400, 511, 512, 1024])
def test_window_is_that_of_librosa_bit_for_bit(n_fft: int) -> None:
    expected = librosa.filters.get_window("hann", n_fft)
    np.testing.assert_array_equal(make_frontend(n_fft=n_fft).make_window().numpy(), expected, strict=True)


def test_empty_mel_filters_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="of n_mels=256 mel filters contain no bin of n_fft=512"):
        make_frontend(n_fft=512, n_mels=256)


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


def test_log_mel_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_frontend()(torch.zeros(1, RATE))


@pytest.mark.parametrize("num_samples", [64_000, 64_001, 64_159, 79_999])
@pytest.mark.parametrize("n_fft", [511, 512])
def test_whole_clip_in_blocks_equals_one_spectrogram(
    num_samples: int, n_fft: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontend, waveform = make_frontend(n_fft=n_fft, int16=True), torch.from_numpy(sound(num_samples))
    expected = frontend(waveform[None])[0]
    assert_close(frontend.whole_clip(waveform), expected, rtol=0, atol=0)
    for block in (7, 100, 399):
        monkeypatch.setattr("clap.audio.BLOCK", block)
        assert_close(frontend.whole_clip(waveform), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("block", [2**14, 250, 7])
@pytest.mark.parametrize("n_fft", [511, 512])
def test_whole_clips_of_several_durations_equal_each_alone(
    n_fft: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontend = make_frontend(n_fft=n_fft)
    waveforms = [torch.from_numpy(sound(length)) for length in (9000, 16_000, 9000, 12_159, 600)]
    expected = [frontend(waveform[None])[0] for waveform in waveforms]
    monkeypatch.setattr("clap.audio.BLOCK", block)
    for log_mel, alone in zip(frontend.whole_clips(waveforms), expected, strict=True):
        assert_close(log_mel, alone, rtol=0, atol=1e-4)


def test_full_window_has_num_frames() -> None:
    frontend = make_frontend()
    log_mel = frontend.full_window(torch.zeros(2, 8000), torch.tensor([8000, 500]))
    assert log_mel.shape == (2, frontend.num_frames, frontend.n_mels)


@pytest.mark.parametrize("mode", FILL_MODES)
def test_filling_cuts_longer_clips(mode: str) -> None:
    waveform = torch.arange(1.0, 13).view(1, 12)
    assert_close(fill_waveform(waveform, torch.tensor([12]), 10, mode), waveform[:, :10])


@pytest.mark.parametrize("mode", FILL_MODES)
def test_filling_ignores_samples_beyond_the_length(mode: str) -> None:
    waveform = torch.tensor([[1.0, 2.0, 3.0, torch.nan, torch.nan]])
    assert fill_waveform(waveform, torch.tensor([3]), 10, mode).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_invalid_frontend_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_frontend(**arguments)


def test_spec_augment_is_inactive_in_evaluation() -> None:
    log_mel = torch.ones(2, 1, 100, 64)
    assert SpecAugment(time_mask=50, frequency_mask=30).eval()(log_mel) is log_mel


def test_spec_augment_zeroes_full_bands_in_training() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(time_mask=20, frequency_mask=10, num_masks=1)(torch.ones(2, 1, 100, 64)) == 0
    frames, bins = masked.all(dim=3), masked.all(dim=2)  # (batch, views, time), (batch, views, n_mels)
    assert frames.any() and bins.any()
    assert torch.equal(masked, frames[..., None] | bins[:, :, None])


def test_spec_augment_masks_clips_independently() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(time_mask=50, frequency_mask=30)(torch.ones(2, 1, 100, 64))
    assert not torch.equal(masked[0], masked[1])

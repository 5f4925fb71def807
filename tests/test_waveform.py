"""Recordings are decoded in full or in part, or refused with their path."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_errors import error_message

from clap.waveform import load_waveform, mix_down, read_header

RATE = 16000
LOSSLESS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("aiff", "PCM_16")]
LOSSY = [("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")]


def sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """A tone in noise, (samples,) float32, peaks at about a half."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / RATE) + 0.05 * noise).astype(np.float32)


def cut_off(path: Path, num_bytes: int) -> Path:
    """Truncate a file to `num_bytes`, or by that many if negative."""
    path.write_bytes(path.read_bytes()[:num_bytes])
    return path


@pytest.mark.parametrize(("suffix", "subtype"), LOSSLESS)
def test_lossless_formats_give_their_samples(tmp_path: Path, suffix: str, subtype: str) -> None:
    path, waveform = tmp_path / f"a.{suffix}", sound(RATE)
    soundfile.write(path, waveform, RATE, subtype=subtype)
    np.testing.assert_allclose(load_waveform(path, RATE), waveform, atol=2**-15)


@pytest.mark.parametrize(("suffix", "subtype"), LOSSY)
def test_lossy_formats_approximate_their_samples(tmp_path: Path, suffix: str, subtype: str) -> None:
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
def test_middle_part_equals_the_middle_of_the_recording(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(5 * RATE), RATE, subtype=subtype)
    full = load_waveform(path, RATE)
    np.testing.assert_allclose(load_waveform(path, RATE, max_duration=1.0), full[2 * RATE : 3 * RATE], atol=1e-4)


@pytest.mark.parametrize(("suffix", "subtype"), [*LOSSLESS, ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
def test_random_part_equals_a_part_of_the_recording(tmp_path: Path, suffix: str, subtype: str) -> None:
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
    assert "full scale is 1" in error_message(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_header_has_rate_length_and_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.zeros((4410, 2)), 44_100)
    header = read_header(path)
    assert (header.sample_rate, header.num_bytes) == (44_100, path.stat().st_size)
    assert header.duration == pytest.approx(len(load_waveform(path, 44_100)) / 44_100)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such" in error_message(tmp_path / "a.wav")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "no such" in error_message(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_file_of_zero_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    assert "0 bytes" in error_message(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_file_without_samples_is_refused(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", np.zeros(0), RATE)
    assert error_message(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(("suffix", "header"), [("wav", 44), ("flac", 44), ("ogg", 60), ("aiff", 44)])
def test_bare_header_is_refused(tmp_path: Path, suffix: str, header: int) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", sound(2 * RATE), RATE)
    assert error_message(cut_off(tmp_path / f"a.{suffix}", header))


@pytest.mark.parametrize("lost", [20000, 1000, 2])
@pytest.mark.parametrize(("suffix", "subtype"), [*LOSSLESS, ("mp3", "MPEG_LAYER_III")])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, subtype: str, lost: int) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(10 * RATE), RATE, subtype=subtype)
    assert error_message(cut_off(path, -(lost if suffix != "mp3" else max(lost, 500))))


@pytest.mark.parametrize("lost", [20000, 8000, 200, 2])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_truncated_ogg_is_refused(tmp_path: Path, subtype: str, lost: int) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, sound(20 * RATE), RATE, subtype=subtype)
    assert "truncated, its last Ogg pa" in error_message(cut_off(path, -lost))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "raw"])
def test_text_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_text("<html>404 Not Found</html>\n" * 50)
    assert "cannot be decoded" in error_message(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sample_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    waveform = sound(RATE)
    waveform[123] = value
    soundfile.write(tmp_path / "a.wav", waveform, RATE, subtype="FLOAT")
    assert "NaN" in error_message(tmp_path / "a.wav")


def test_less_than_a_frame_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(300), RATE)
    assert "shorter than one frame" in error_message(tmp_path / "a.wav")


def test_clip_longer_than_the_longest_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(3 * RATE), RATE)
    monkeypatch.setattr("clap.waveform.read_blocks", None)
    message = error_message(tmp_path / "a.flac", longest=2.5)
    assert message.startswith("3.0 s long, the longest clip is 2.5 s") and "dataset.longest_clip" in message


def test_part_of_a_longer_clip_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(3 * RATE), RATE)
    assert len(load_waveform(tmp_path / "a.wav", RATE, max_duration=1.0, longest=2.5)) == RATE


@pytest.mark.parametrize(("suffix", "subtype"), [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_blocks_do_not_change_samples(
    tmp_path: Path, suffix: str, subtype: str, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    samples = np.stack([sound(2 * RATE), sound(2 * RATE, 1)], axis=1)
    soundfile.write(path, samples, RATE, subtype=subtype, format="OGG" if suffix == "opus" else None)
    whole = load_waveform(path, rate)
    monkeypatch.setattr("clap.waveform.BLOCK", 9001)
    np.testing.assert_allclose(load_waveform(path, rate), whole, rtol=0, atol=0 if suffix != "mp3" else 1e-6)


def test_memory_does_not_follow_the_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(sound(2000)[:, None], 1000), RATE, subtype="FLOAT")
    sizes, read = [], soundfile.SoundFile.read
    monkeypatch.setattr("clap.waveform.BLOCK", 2**16)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kw: sizes.append(args[1]) or read(*args, **kw))
    np.testing.assert_allclose(load_waveform(tmp_path / "a.wav", RATE), sound(2000), atol=1e-5)
    assert max(sizes) * 1000 <= 2**16 and sum(sizes) == 2000


def test_sample_rate_that_no_recorder_has_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(RATE), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = (2_000_000).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content + bytes(10**6))
    content[40:44] = content[4:8] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(content + bytes(10**6))
    assert "sample rate of 2000000 Hz, the limit is 1000000" in error_message(tmp_path / "a.wav")


@pytest.mark.parametrize("error", [MemoryError, SystemError, OverflowError, RuntimeError])
@pytest.mark.parametrize("place", ["soundfile.SoundFile.read", "clap.waveform.soxr.resample"])
def test_errors_of_the_decoder_name_the_file(tmp_path: Path, monkeypatch, place: str, error: type) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error("failure")

    soundfile.write(tmp_path / "a.wav", sound(RATE), 2 * RATE)  # is resampled
    monkeypatch.setattr(place, fail)
    assert ("does not fit into memory" if error is MemoryError else "failure") in error_message(tmp_path / "a.wav")


def test_wav_whose_header_was_never_completed_is_refused_with_a_remedy(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(RATE), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = bytes(4)  # as a recorder leaves it that loses power
    (tmp_path / "a.wav").write_bytes(content)
    assert "no samples according to its header" in error_message(tmp_path / "a.wav")
    assert "ffmpeg -i a.wav a.flac" in error_message(tmp_path / "a.wav")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_wav_longer_than_its_header_is_refused(tmp_path: Path, share: float) -> None:
    """A recorder that lost power, or a file above 4 GiB, whose 32-bit sizes have wrapped."""
    soundfile.write(tmp_path / "a.wav", sound(10 * RATE), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    size = int(share * 20 * RATE) + 2000
    content[4:8], content[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert "ffmpeg -ignore_length 1 -i a.wav" in error_message(tmp_path / "a.wav")


def test_wav_with_a_wrong_size_of_the_file_but_not_of_its_samples_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(10 * RATE), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = (36).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert len(load_waveform(tmp_path / "a.wav", RATE)) == 10 * RATE


def test_tag_behind_a_wav_is_ignored(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(RATE), RATE)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes() + b"TAG" + bytes(1000))
    assert len(load_waveform(tmp_path / "a.wav", RATE)) == RATE


@pytest.mark.parametrize("container", ["RF64", "W64", "AU"])
def test_other_truncated_containers_are_refused(tmp_path: Path, container: str) -> None:
    soundfile.write(tmp_path / "a.wav", sound(RATE), RATE, format=container)
    assert "truncated" in error_message(cut_off(tmp_path / "a.wav", -1000))


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

"""Compressed recordings are as long as their frames, whatever their header says, or refused with a remedy."""

import io
import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from audio_errors import error_message

import clap.containers
from clap.check.measure import measure_file
from clap.containers import check_flac, check_mpeg, find_mpeg_frames
from clap.waveform import load_waveform

RATE = 44100
DURATION = 3.0  # seconds
NUM_SAMPLES = round(DURATION * RATE)
DELAY = 2304  # samples that an encoder of MPEG audio may add at each end
APE = struct.pack("<8sIIII8x40x", b"APETAGEX", 2000, 40, 0, 1 << 31)  # a header of 32 bytes, 40 bytes
TAG = b"ID3\4\0\0\0\0\6\0" + bytes(6 << 7)  # 768 bytes behind its header


def sweep() -> np.ndarray:
    time = np.arange(NUM_SAMPLES) / RATE
    noise = 0.01 * np.random.default_rng(0).standard_normal(NUM_SAMPLES)
    return 0.4 * np.sin(2 * np.pi * (300 + 400 * time) * time) + noise


@pytest.fixture(scope="module")
def encoded() -> dict[str, bytes]:
    """The sweep in each format."""
    options = {
        "vbr": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.7},
        "cbr": {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.5},
        "flac": {"format": "FLAC"},
        "vorbis": {"format": "OGG", "subtype": "VORBIS"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
    }
    found = {}
    for name, kind in options.items():
        content = io.BytesIO()
        soundfile.write(content, sweep(), 48000 if name == "opus" else RATE, **kind)
        found[name] = content.getvalue()
    return found


def strip_header(content: bytes) -> bytes:
    """MP3 without the frame that holds the Xing header."""
    start, size = next(find_mpeg_frames(content))
    assert b"Xing" in content[start : start + size] or b"Info" in content[start : start + size]
    return content[start + size :]


def set_flac_length(content: bytes, length: int) -> bytes:
    return content[:21] + bytes([content[21] & 0xF0 | length >> 32]) + struct.pack(">I", length % 2**32) + content[26:]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_whole(path: Path, duration: float = DURATION) -> None:
    """The file, its parts and its measures have the whole sweep."""
    whole = load_waveform(path, RATE)
    assert abs(len(whole) - duration * RATE) <= DELAY
    start = int(np.random.default_rng(1).integers(len(whole) - RATE + 1))
    part = load_waveform(path, RATE, max_duration=1.0, rng=np.random.default_rng(1))
    np.testing.assert_allclose(part, whole[start : start + RATE], atol=1e-4)
    assert measure_file(path).duration == len(whole) / RATE


# MPEG audio


@pytest.mark.parametrize("kind", ["vbr", "cbr"])
def test_mp3_without_xing_header_is_whole(tmp_path: Path, encoded: dict[str, bytes], kind: str) -> None:
    path = write(tmp_path / "a.mp3", strip_header(encoded[kind]))
    if kind == "vbr":
        assert soundfile.info(path).duration < 0.8 * DURATION
    assert_whole(path)


@pytest.mark.parametrize("tag", ["none", "in front", "behind", "zeros behind"])
def test_tags_are_not_audio(tmp_path: Path, encoded: dict[str, bytes], tag: str) -> None:
    stream = strip_header(encoded["cbr"])
    expected = load_waveform(write(tmp_path / "a.mp3", stream), RATE)
    content = {"none": stream, "in front": TAG + stream, "behind": stream + b"TAG" + bytes(125)}
    path = write(tmp_path / "b.mp3", content.get(tag, stream + bytes(50_000)))
    np.testing.assert_array_equal(load_waveform(path, RATE), expected)


def test_padding_is_not_searched_byte_by_byte(encoded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    found, compared = list(find_mpeg_frames(encoded["cbr"])), []
    measure = clap.containers.measure_frame_at
    monkeypatch.setattr(clap.containers, "measure_frame_at", lambda *at: compared.append(at[1]) or measure(*at))
    assert list(find_mpeg_frames(encoded["cbr"] + b"\xff" * 100_000)) == found
    assert len(compared) < len(found) + 100


def test_decoded_samples_are_those_of_the_stream(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    """libsndfile decodes an MP3 of constant bit rate to its end, with the delay of the decoder."""
    path = write(tmp_path / "a.mp3", strip_header(encoded["cbr"]))
    expected = soundfile.read(path, dtype="float32")[0][529:]
    np.testing.assert_array_equal(load_waveform(path, RATE), expected[: len(load_waveform(path, RATE))])
    assert len(load_waveform(path, RATE)) >= len(expected)


def test_mp3_with_xing_header_is_not_read_to_count_frames(tmp_path: Path, encoded: dict[str, bytes], monkeypatch):
    path = write(tmp_path / "a.mp3", encoded["vbr"])
    monkeypatch.setattr(Path, "read_bytes", None)
    assert check_mpeg(path, 17) == (path, 17)


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), APE, APE + b"TAG" + bytes(125)])
def test_tagged_mp3_is_not_read_to_count_frames(tmp_path: Path, encoded: dict[str, bytes], tag: bytes, monkeypatch):
    path = write(tmp_path / "a.mp3", TAG + encoded["vbr"] + tag)
    monkeypatch.setattr(Path, "read_bytes", None)
    assert check_mpeg(path, 17) == (path, 17)


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), APE])
def test_mp3_behind_a_tag_is_read(tmp_path: Path, encoded: dict[str, bytes], tag: bytes) -> None:
    path = write(tmp_path / "a.mp3", encoded["vbr"] + tag + encoded["vbr"])
    assert abs(len(load_waveform(path, RATE)) - 2 * NUM_SAMPLES) <= 2 * DELAY


def test_joined_mp3s_are_read_to_the_end(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    path = write(tmp_path / "a.mp3", encoded["vbr"] + TAG + encoded["vbr"])
    assert soundfile.info(path).duration == DURATION
    assert abs(len(load_waveform(path, RATE)) - 2 * NUM_SAMPLES) <= 2 * DELAY


@pytest.mark.parametrize(("rate", "channels"), [(32000, 1), (RATE, 2)])
def test_mp3s_of_two_formats_in_a_row_are_refused(
    tmp_path: Path, encoded: dict[str, bytes], rate: int, channels: int
) -> None:
    content = io.BytesIO()
    soundfile.write(content, np.stack([sweep()] * channels, axis=1), rate, format="MP3")
    path = write(tmp_path / "a.mp3", encoded["cbr"] + content.getvalue())
    assert "two formats in a row" in error_message(path) and "ffmpeg -i a.mp3" in error_message(path)


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_mp3_whose_header_lacks_a_length_is_whole(tmp_path: Path, encoded: dict[str, bytes], flags: int) -> None:
    content = bytearray(encoded["vbr"])
    place = max(content.find(b"Xing"), content.find(b"Info"))
    fields = {1: content[place + 8 : place + 12], 2: content[place + 12 : place + 16]}
    content[place + 4 : place + 16] = bytes([0, 0, 0, flags]) + fields.get(flags, b"").ljust(8, b"\0")
    assert_whole(write(tmp_path / "a.mp3", bytes(content)))


@pytest.mark.parametrize("has_header", [True, False])
def test_truncated_mp3_is_refused_before_it_is_decoded(
    tmp_path: Path, encoded: dict[str, bytes], has_header: bool
) -> None:
    content = encoded["vbr"] if has_header else strip_header(encoded["vbr"])
    path = write(tmp_path / "a.mp3", content[:-1000])
    assert "truncated" in error_message(path, max_duration=0.1)


def test_mp3_that_lacks_whole_frames_is_truncated(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    start, _ = list(find_mpeg_frames(encoded["vbr"]))[-10]
    path = write(tmp_path / "a.mp3", encoded["vbr"][:start])
    assert "MPEG frames and" in error_message(path, max_duration=0.1)


@pytest.mark.parametrize("options", ["mp2:-c:a mp2", "wav:-c:a libmp3lame -q:a 6", "wav:-c:a libmp3lame -b:a 128k"])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_other_mpeg_audio_is_whole(tmp_path: Path, options: str, rate: int) -> None:
    suffix, _, arguments = options.partition(":")
    soundfile.write(tmp_path / "a.wav", sweep(), RATE)
    path = tmp_path / f"b.{suffix}"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.wav", "-ar", str(rate)]
    subprocess.run([*ffmpeg, *arguments.split(), path], check=True)
    assert abs(len(load_waveform(path, rate)) / rate - DURATION) < 2 * 1152 / rate


# FLAC


@pytest.mark.parametrize("announced", [0, 1000])
def test_flac_without_its_length_is_whole(tmp_path: Path, encoded: dict[str, bytes], announced: int) -> None:
    expected = load_waveform(write(tmp_path / "a.flac", encoded["flac"]), RATE)
    path = write(tmp_path / "b.flac", set_flac_length(encoded["flac"], announced))
    np.testing.assert_array_equal(load_waveform(path, RATE), expected)
    assert_whole(path)


@pytest.mark.parametrize("announced", [NUM_SAMPLES + 1, 2**36 - 1])
def test_flac_shorter_than_its_header_is_truncated(tmp_path: Path, encoded: dict[str, bytes], announced: int) -> None:
    path = write(tmp_path / "a.flac", set_flac_length(encoded["flac"], announced))
    assert f"announces {announced} samples and {NUM_SAMPLES} are there" in error_message(path, max_duration=0.1)


def test_truncated_flac_is_refused_before_it_is_decoded(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    assert "truncated" in error_message(write(tmp_path / "a.flac", encoded["flac"][:-20_000]), max_duration=0.1)


def test_truncated_flac_of_unknown_length_names_the_file(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    content = set_flac_length(encoded["flac"], 0)
    assert error_message(write(tmp_path / "a.flac", content[:-100]))
    reason = error_message(write(tmp_path / "a.flac", content[:60]))
    assert "last FLAC frame is not found" in reason and "ffmpeg -i a.flac" in reason


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("length", [9000, 40_960, 4096 * 130 + 7])
def test_end_of_flac_is_found(tmp_path: Path, length: int, channels: int, subtype: str) -> None:
    waveform = 0.3 * np.random.default_rng(length).standard_normal((length, channels)).clip(-3, 3)
    soundfile.write(tmp_path / "a.flac", waveform, 22050, subtype=subtype)
    content = set_flac_length((tmp_path / "a.flac").read_bytes(), 0) + b"TAG" + bytes(125)
    assert soundfile.SoundFile(check_flac(write(tmp_path / "a.flac", content), 0)).frames == length


# Ogg


def split_pages(content: bytes) -> list[bytes]:
    starts = [i for i in range(len(content)) if content.startswith(b"OggS\0", i)]
    return [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def unmark_page(page: bytes) -> bytes:
    """A page without the mark of the last one; its checksum is that of the marked page, which readers do not accept."""
    return page[:5] + bytes([page[5] & ~4]) + page[6:]


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_ogg_without_end_mark_is_whole(tmp_path: Path, encoded: dict[str, bytes], kind: str) -> None:
    *pages, last = split_pages(encoded[kind])
    rate = RATE if kind == "vorbis" else 48000
    expected = load_waveform(write(tmp_path / "a.ogg", encoded[kind]), rate)
    path = write(tmp_path / "b.ogg", b"".join([*pages, unmark_page(last)]))
    np.testing.assert_array_equal(load_waveform(path, rate), expected)


@pytest.mark.parametrize("num_bytes", [1, 3000, 100_000])
def test_padding_behind_ogg_is_ignored(tmp_path: Path, encoded: dict[str, bytes], num_bytes: int) -> None:
    path = write(tmp_path / "a.ogg", encoded["vorbis"] + bytes(num_bytes))
    assert len(load_waveform(path, RATE)) == NUM_SAMPLES


@pytest.mark.parametrize("first", ["vorbis", "opus"])
def test_ogg_streams_in_a_row_are_refused_with_a_remedy(tmp_path: Path, encoded: dict[str, bytes], first: str) -> None:
    path = write(tmp_path / "a.ogg", encoded[first] + encoded["vorbis"])
    assert "several Ogg streams in a row" in error_message(path) and "ffmpeg -i a.ogg a.flac" in error_message(path)


def test_ogg_that_ends_inside_a_packet_is_truncated(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    *pages, last = split_pages(encoded["vorbis"])
    longer = unmark_page(last)[:26] + bytes([1, 255]) + bytes(255)  # a packet of 255 bytes or more
    path = write(tmp_path / "a.ogg", b"".join([*pages, longer]))
    assert "last Ogg packet is incomplete" in error_message(path)

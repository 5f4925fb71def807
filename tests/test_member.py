"""Recordings inside a tar are decoded as the same files are, or refused with shard and name."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clap.member
from clap.check.measure import measure_file
from clap.corpus import Clip
from clap.dataset.cache import WaveformCache
from clap.member import Member
from clap.waveform import AudioError, load_waveform, read_header

RATE = 16000
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


def pack(folder: Path, *files: Path) -> list[Member]:
    """The files as members of one tar."""
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    with tarfile.open(shard) as tar:
        return [Member(shard, info.offset_data, info.size, info.name) for info in tar]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    noise = 0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
    for suffix, subtype in FORMATS.items():
        soundfile.write(tmp_path / f"noise.{suffix}", noise, RATE, subtype=subtype)
    return [tmp_path / f"noise.{suffix}" for suffix in FORMATS]


@pytest.mark.parametrize("whole", [2**24, 1000])  # 1000: read in parts, when requested
def test_member_equals_its_file(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int):
    monkeypatch.setattr(clap.member, "WHOLE", whole)
    cache = WaveformCache(tmp_path / "cache")
    for file, member in zip(files, pack(tmp_path, *files), strict=True):
        for seconds in (None, 0.5):
            expected = load_waveform(file, RATE, max_duration=seconds, rng=np.random.default_rng(1))
            found = load_waveform(member, RATE, max_duration=seconds, rng=np.random.default_rng(1))
            np.testing.assert_array_equal(found, expected)
        assert read_header(member) == read_header(file)
        assert measure_file(member) == measure_file(file)
        np.testing.assert_array_equal(cache.load(member, RATE), cache.load(file, RATE))
    assert len(list((tmp_path / "cache" / "samples").glob("*/*"))) == len(files)  # by content


def test_mpeg_without_a_header_is_as_long_as_its_frames(files: list[Path], tmp_path: Path):
    file = files[-1]
    content = file.read_bytes()
    file.write_bytes(content[content.index(b"\xff\xfb", 4) :] if content[:2] == b"\xff\xfb" else content)
    (member,) = pack(tmp_path, file)
    assert read_header(member) == read_header(file)
    np.testing.assert_array_equal(load_waveform(member, RATE), load_waveform(file, RATE))


def test_missing_shard_is_named(tmp_path: Path):
    member = Member(tmp_path / "a.tar", 512, 100, "dog.wav")
    with pytest.raises(AudioError, match=f"^{re.escape(str(tmp_path))}/a.tar: dog.wav: no such shard$"):
        load_waveform(member, RATE)


def test_member_behind_the_end_of_its_shard_is_truncated(files: list[Path], tmp_path: Path):
    members = pack(tmp_path, *files[:2])
    shard, last = members[0].shard, members[1]
    shard.write_bytes(shard.read_bytes()[: last.offset + last.size - 1])
    length = last.offset + last.size - 1
    with pytest.raises(AudioError, match=f"^{re.escape(str(last))}: truncated, the shard has {length} bytes"):
        load_waveform(last, RATE)
    assert read_header(members[0]) == read_header(files[0])


def test_member_that_is_not_audio_is_refused(tmp_path: Path):
    (tmp_path / "note.wav").write_text("no audio" * 100)
    (member,) = pack(tmp_path, tmp_path / "note.wav")
    with pytest.raises(AudioError, match=f"^{re.escape(str(member))}: cannot be decoded"):
        load_waveform(member, RATE)


def test_replaced_shard_is_read_again(files: list[Path], tmp_path: Path):
    first = pack(tmp_path, files[0])[0]
    assert first.read_bytes() == files[0].read_bytes()
    first.shard.rename(tmp_path / "old.tar")
    second = pack(tmp_path, files[1])[0]
    assert second.read_bytes() == files[1].read_bytes()


def test_clip_has_a_path_or_a_member():
    member = Member("a.tar", 512, 100, "dog.wav")
    assert Clip("dog", ("a dog",), member=member).recording == member
    assert Clip("dog", ("a dog",), Path("dog.wav")).recording == Path("dog.wav")
    with pytest.raises(ValueError, match="give one of them"):
        Clip("dog", ("a dog",), Path("dog.wav"), member=member)

"""Suffixes of recordings against the decoder that is installed."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile
from conftest import make_tone

from clap.audio_formats import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES, SUFFIXES
from clap.waveform import AudioError, load_waveform

UNLISTED = {"RAW", "MAT4", "MAT5", "XI"}
KINDS = [(kind, suffix) for kind, suffixes in SUFFIXES.items() for suffix in suffixes]


def test_every_format_of_the_decoder_is_listed():
    assert SUFFIXES.keys() == soundfile.available_formats().keys() - UNLISTED


@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_listed_suffix_can_be_decoded(tmp_path: Path, kind: str, suffix: str):
    waveform = make_tone(300.0, 0.5, sample_rate=8_000)
    subtype = "OPUS" if suffix == ".opus" else None
    soundfile.write(tmp_path / f"a{suffix}", waveform, 8_000, format=kind, subtype=subtype)
    assert len(load_waveform(tmp_path / f"a{suffix}", 8_000)) == len(waveform) and suffix in AUDIO_SUFFIXES


@pytest.mark.parametrize("suffix", CONVERTIBLE_SUFFIXES)
def test_other_kinds_say_how_to_convert_them(tmp_path: Path, suffix: str):
    path = tmp_path / f"a b{suffix.upper()}"
    path.write_bytes(b"\0\0\0\x20ftypM4A " * 9)
    with pytest.raises(AudioError, match="convert it with `ffmpeg -i ") as error:
        load_waveform(path, 8_000)
    assert shlex.split(re.search("`(.*)`", str(error.value))[1]) == ["ffmpeg", "-i", path.name, "a b.flac"]


def test_link_that_leads_nowhere_names_its_target(tmp_path: Path):
    (tmp_path / "a.wav").symlink_to("gone.wav")
    with pytest.raises(AudioError, match="a.wav: no such audio file, a link to gone.wav"):
        load_waveform(tmp_path / "a.wav", 8_000)

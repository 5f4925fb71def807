"""YouTube and Freesound sources inferred from clip names, and names that only look similar."""

from pathlib import Path

import pytest

from clap.corpus import Clip
from clap.dataset.clip_table import JoinedClips
from clap.dataset.sources import find_recordings, infer_sources, source_recording

YOUTUBE = ("7fmOlUlwoNg", "6BJ455B1aAs", "GOD8Bt5LfDE", "r1nicOVtvkQ", "vfY_TJq7n_U")


def sources(*names: str, source: str | None = None) -> list[str | None]:
    return infer_sources([Clip(name, (), Path("audio") / name, source=source) for name in names])


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("7fmOlUlwoNg.wav", "youtube:7fmOlUlwoNg"),
        ("Y7fmOlUlwoNg.flac", "youtube:7fmOlUlwoNg"),
        ("7fmOlUlwoNg_20.wav", "youtube:7fmOlUlwoNg@20"),
        ("7fmOlUlwoNg_20_30.wav", "youtube:7fmOlUlwoNg@20"),
        ("7fmOlUlwoNg_20.000_30.000.wav", "youtube:7fmOlUlwoNg@20.000"),
        ("7fmOlUlwoNg", "youtube:7fmOlUlwoNg"),
        ("168811__someone__pond.wav", "freesound:168811"),
        ("freesound_168811.ogg", "freesound:168811"),
        ("1-100032-A-0.wav", "freesound:100032"),
        ("100032-3-0-0.wav", "freesound:100032"),
        ("recording01.wav", None),
        ("MyRecording.wav", None),
        ("rain.wav", None),
        ("12.wav", None),
    ],
)
def test_source_is_inferred_from_the_name(name: str, source: str | None):
    assert sources(name, "rain at night.wav", "a dog.wav") == [source, None, None]


def test_source_is_inferred_from_the_id_without_a_file():
    assert infer_sources([Clip("7fmOlUlwoNg_20", ())]) == ["youtube:7fmOlUlwoNg@20"]


def test_plain_id_is_accepted_among_random_ones():
    assert sources(*YOUTUBE, "abcdefghijk")[-1] == "youtube:abcdefghijk"


def test_sparse_numbers_are_freesound_ids():
    assert sources("64760.wav", "1002.wav", "21914.wav") == ["freesound:64760", "freesound:1002", "freesound:21914"]


@pytest.mark.parametrize("names", [("1.wav", "2.wav", "3.wav"), ("00001.wav", "08211.wav"), ("64760.wav", "dog.wav")])
def test_consecutive_padded_or_rare_numbers_are_not_ids(names: tuple[str, ...]):
    assert sources(*names) == [None] * len(names)


def test_source_of_the_corpus_takes_precedence():
    assert sources("7fmOlUlwoNg.wav", source="freesound:7") == ["freesound:7"]


def test_source_recording_drops_the_start():
    assert [source_recording(source) for source in ("youtube:a@3", "freesound:7", None)] == [
        "youtube:a",
        "freesound:7",
        None,
    ]


@pytest.mark.parametrize(
    ("path", "recording"),
    [
        ("WavCaps/FreeSound_flac/17.flac", "freesound:17"),
        ("freesound/sub/0017.wav", "freesound:17"),
        ("sounds/17__user__dog.wav", "freesound:17"),
        ("audio/5-17-A-39.wav", "freesound:17"),
        ("audio/fold1/17-9-0-3.wav", "freesound:17"),
        ("freesound_17.ogg", "freesound:17"),
        ("AudioSet_SL_flac/Yg3QkTL9mDOI.flac", "youtube:g3QkTL9mDOI"),
        ("audio/g3QkTL9mDOI_30.wav", "youtube:g3QkTL9mDOI"),
        ("audio/g3QkTL9mDOI_30.000_40.000.wav", "youtube:g3QkTL9mDOI"),
        ("audio/17.wav", None),
        ("audio/2-17.wav", None),
        ("audio/g3QkTL9mDO.wav", None),
    ],
)
def test_evaluated_recording_is_found_by_the_name_of_a_training_clip(path: str, recording: str | None):
    clips = JoinedClips([[Clip("a", ("a",)), Clip("b", ("b",), Path(path)), Clip("c", ("c",), source="recording 17")]])
    evaluated = {"freesound:17", "youtube:g3QkTL9mDOI"}
    assert find_recordings(clips, evaluated).tolist() == ([] if recording is None else [1])
    assert not len(find_recordings(clips, evaluated - {recording}))

"""Recordings of the evaluated splits are checked before training; settings without effect are in test_trainer.py."""

from pathlib import Path

import pytest
from ramps import make_dataset

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.synthetic import Synthetic
from clap.training import preflight
from clap.training.preflight import check_recordings


@pytest.fixture
def clips(ramps: list[Clip], unreadable: Path) -> list[Clip]:
    """Ten recordings and one that does not decode, which is the second."""
    return [ramps[0], Clip("odd", ("a",), unreadable), *ramps[1:]]


def test_unreadable_recording_of_a_split_is_named(clips: list[Clip], caplog: pytest.LogCaptureFixture):
    check_recordings(make_dataset(clips, "test", max_bad_fraction=0.1))
    assert "test split: " in caplog.text and "unreadable.wav: cannot be decoded" in caplog.text


def test_too_many_unreadable_recordings_are_refused_with_the_missing_ones(clips: list[Clip], tmp_path: Path):
    lost = Clip("lost", ("a",), tmp_path / "lost.wav")
    with pytest.raises(
        ValueError, match=r"2 of 12 clips of ramps \(test\) cannot be used, the first is odd \(.*: cannot be decoded"
    ):
        check_recordings(make_dataset([*clips, lost], "test", max_bad_fraction=0.1))


def test_missing_recordings_alone_are_allowed_as_the_dataset_allows_them(ramps: list[Clip], tmp_path: Path):
    lost = Clip("lost", ("a",), tmp_path / "lost.wav")
    check_recordings(make_dataset([*ramps, lost], "test", max_bad_fraction=0.1))


def test_number_of_checked_recordings_is_bounded(ramps: list[Clip], monkeypatch: pytest.MonkeyPatch):
    for most, count in ((10, 10), (9, 5), (3, 3)):
        dataset = make_dataset(ramps, "test")
        monkeypatch.setattr(preflight, "MOST_HEADERS", most)
        check_recordings(dataset)
        assert len(dataset.headers) == count


def test_rendered_scenes_have_nothing_to_check():
    dataset = ClapDataset(Synthetic(num_train=2, num_val=2, num_test=2), "val", sample_rate=8000)
    check_recordings(dataset)
    assert not dataset.headers

"""Training skips clips of recordings that other corpora evaluate, and what the lists of a part name."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clap.corpus import Clip, Corpus, Part
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.mixture import Parts, without_exclusions

SETTINGS = DatasetSettings(max_bad_fraction=1.0)


class Listed(Corpus):
    """Clips {split: [(name, source)]}; a file exists for each."""

    def __init__(self, name: str, clips: dict[str, list[tuple[str, str | None]]], audio: Path) -> None:
        self.name, self.listed, self.audio = name, clips, audio

    def clips(self, split: str) -> list[Clip]:
        if split not in self.listed:
            raise FileNotFoundError(f"{split}.csv is missing")
        return [Clip(name, (f"{self.name} {name}",), self.audio, source=source) for name, source in self.listed[split]]


@pytest.fixture
def make(tones: list[Path]) -> Callable:
    """`make(name, train, val, test)` -> a corpus of clips with these sources, named by their positions."""

    def make(name: str, **splits: list[str | None]) -> Listed:
        clips = {split: [(f"{split}{i}", source) for i, source in enumerate(own)] for split, own in splits.items()}
        return Listed(name, clips, tones[0])

    return make


def train_on(*corpora: Corpus, evaluated: tuple[Corpus, ...] = (), **options: object) -> list[str]:
    """Captions of the training clips."""
    settings = replace(SETTINGS, **options)
    return ClapDataset(corpora, sample_rate=8_000, settings=settings, evaluated=evaluated).captions


def test_recordings_that_another_corpus_evaluates_are_skipped(make: Callable, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    large = make("large", train=["youtube:a", "youtube:b", "freesound:1", None], val=[], test=[])
    small = make("small", train=["youtube:b@3"], val=["youtube:a@30"], test=["freesound:1", "youtube:c"])
    assert train_on(large, small) == ["large train1", "large train3", "small train0"]
    assert "skipped 2 of 5 training clips of large_small" in caplog.text and "(small: 2)" in caplog.text
    assert len(train_on(large, small, exclude_evaluated=False)) == 5


def test_own_evaluation_clips_skip_nothing(make: Callable):
    corpus = make("one", train=["youtube:a"], val=["youtube:a"], test=["youtube:a"])
    assert train_on(corpus) == ["one train0"]
    assert train_on(corpus, make("two", train=["youtube:b"], val=[], test=[])) == ["one train0", "two train0"]


def test_evaluation_datasets_are_compared_too(make: Callable):
    large = make("large", train=["freesound:1", "freesound:2"], val=[], test=[])
    other = Parts([Part(make("esc50", train=["freesound:2"], val=[], test=[]), splits={"test": ["train"]})])
    assert train_on(large, evaluated=(other,)) == ["large train0"]


def test_evaluation_keeps_all_clips(make: Callable):
    large = make("large", train=["youtube:a"], val=["youtube:b"], test=[])
    small = make("small", train=["youtube:b"], val=["youtube:a"], test=[])
    dataset = ClapDataset([large, small], "val", sample_rate=8_000, settings=SETTINGS)
    assert len(dataset) == 2


def test_split_that_is_not_downloaded_is_reported(make: Callable, caplog: pytest.LogCaptureFixture):
    large, small = make("large", train=["youtube:a"], val=[], test=[]), make("small", train=["youtube:b"])
    assert len(train_on(large, small)) == 2
    assert "not compared with the test split of small: test.csv is missing" in caplog.text


def test_no_clip_left_is_an_error(make: Callable):
    large = make("large", train=["youtube:a"], val=[], test=[])
    with pytest.raises(ValueError, match="every training clip of large is cut from a recording"):
        train_on(large, evaluated=(make("small", train=[], val=[], test=["youtube:a"]),))


def test_lists_of_a_part_skip_its_own_clips_only(make: Callable, tmp_path: Path):
    (tmp_path / "names.txt").write_text("train0\nfreesound:7\tleak\n")
    (tmp_path / "wavcaps.json").write_text(json.dumps({"FreeSound": ["8"], "AudioSet": ["Yabc.wav"]}))
    sources = [None, "freesound:7", "freesound:8", "youtube:abc@1", "youtube:d"]
    first, second = (make(name, train=sources, val=[], test=[]) for name in ("first", "second"))
    exclude = (str(tmp_path / "names.txt"), str(tmp_path / "wavcaps.json"))
    mixture = Parts([Part(first, exclude=exclude), Part(second)])
    assert train_on(mixture) == ["first train4", *(f"second train{i}" for i in range(5))]
    assert len(train_on(without_exclusions(mixture))) == 10


def test_list_that_is_not_of_wavcaps_is_named(make: Callable, tmp_path: Path):
    (tmp_path / "list.json").write_text('{"Freesound": ["8"]}')
    with pytest.raises(ValueError, match="list.json is not an exclusion list; write"):
        train_on(make("one", train=[None]), exclude=str(tmp_path / "list.json"))


def test_captions_of_a_part_are_its_own(make: Callable):
    parts = [Part(make("all", train=[None]), captions="all"), Part(make("one", train=[None], val=[], test=[]))]
    for part in parts:
        part.corpus.clips = lambda split, name=part.corpus.name: [Clip(name, ("a", "b", "c"))]
    assert len(ClapDataset(Parts(parts), sample_rate=8_000)) == 4

"""FSD50K in its published layout: several labels per clip, and invalid lines."""

from pathlib import Path

import pytest
from replicas import write_fsd50k

from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.fsd50k import FSD50K


def test_replica_is_read(tmp_path: Path):
    corpus = FSD50K(write_fsd50k(tmp_path))
    datasets = {split: ClapDataset(corpus, split, sample_rate=8_000) for split in SPLITS}
    assert {split: dataset.num_listed for split, dataset in datasets.items()} == {"train": 4, "val": 2, "test": 3}
    assert all(dataset[0].problem is None for dataset in datasets.values())
    assert sum(corpus.counts.values()) == 51_197


def test_captions_name_all_labels(tmp_path: Path):
    clips = FSD50K(write_fsd50k(tmp_path), templates=["the sound of {}", "{}"]).clips("train")
    assert clips[1].captions == ("the sound of bark, dog and animal", "bark, dog and animal")
    assert clips[0].captions == ("the sound of rain", "rain")
    assert clips[0].captions_from_labels
    assert (clips[1].keywords, clips[1].source) == (("bark", "dog", "animal"), "freesound:102")


def test_only_a_single_label_is_a_class(tmp_path: Path):
    clips = FSD50K(write_fsd50k(tmp_path)).clips("test")
    assert [clip.label for clip in clips] == ["rain", "wind", None]
    assert clips[0].all_labels == ("rain",) and len(clips[2].all_labels) > 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,Rain,/m/x,train", "line 3: fname='x' is not a number"),
        ("101,Rain,/m/x,train", "line 3: fname='101' is already in"),
        ("102,,/m/x,train", "line 3: labels is empty"),
        ('102,"Rain,,Water",/m/x,train', "line 3: labels is empty"),
        ("102,Rain,/m/x,test", "line 3: split='test' is not one of train, val"),
        ("102,Rain,Water,/m/x,train", "line 3: 5 fields, but the header has 4"),
    ],
)
def test_invalid_line_names_file_and_line(tmp_path: Path, line: str, message: str):
    path = write_fsd50k(tmp_path) / "FSD50K.ground_truth" / "dev.csv"
    path.write_text(f"fname,labels,mids,split\n101,Rain,/m/x,train\n{line}\n")
    with pytest.raises(ValueError) as error:
        FSD50K(tmp_path).clips("train")
    assert f"{path}, {message}" in str(error.value)


def test_missing_index_names_the_key_and_the_source(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"eval.csv is missing; root=.*zenodo.org/records/4060432"):
        FSD50K(tmp_path).clips("test")

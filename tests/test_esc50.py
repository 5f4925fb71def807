"""ESC-50 in its published layout, on a synthetic replica."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from clap.commands.synthesize import synthesize
from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.esc50 import ESC50
from clap.dataset.folds import choose_val_recordings
from clap.dataset.scenes.sounds import SOUNDS

NUM_CLIPS = 4 * 5 * len(SOUNDS)  # two recordings of two clips in each fold of each class


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("esc50")
    synthesize(folder, layout="esc50", num_clips=NUM_CLIPS, sample_rate=8_000, max_duration=3.0)
    return folder


@pytest.fixture(scope="module")
def sources(root) -> dict[str, str]:
    with open(root / "meta" / "esc50.csv") as file:
        return {row["filename"]: row["src_file"] for row in csv.DictReader(file)}


def write_index(folder: Path, rows: list[str], header: str = "filename,fold,category,src_file") -> Path:
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_test_split_is_the_fifth_fold(root):
    clips = ESC50(root).clips("test")
    assert len(clips) == NUM_CLIPS // 5 and all(clip.id.startswith("5-") for clip in clips)


@pytest.mark.parametrize("fold", range(1, 6))
def test_every_fold_can_be_the_test(root, fold):
    corpus = ESC50(root, test_fold=fold)
    ids = {split: {clip.id for clip in corpus.clips(split)} for split in SPLITS}
    assert {name[0] for name in ids["test"]} == {str(fold)} and len(ids["test"]) == NUM_CLIPS // 5
    assert len(ids["train"] | ids["val"]) == NUM_CLIPS * 4 // 5 and not ids["test"] & (ids["train"] | ids["val"])


def test_test_fold_trains_on_the_same_clips_as_the_folds_of_splits(root):
    same = {"train_folds": [1, 2, 3, 4], "test_folds": [5]}
    corpora = ESC50(root), ESC50(root, **same), ESC50(root, test_fold=5)
    for split in SPLITS:
        first, *others = ([clip.id for clip in corpus.clips(split)] for corpus in corpora)
        assert others == [first, first]


def test_test_fold_trains_on_the_folds_that_the_index_has(tmp_path):
    rows = [f"{fold}-{number}-A-0.wav,{fold},dog,{fold}{number}" for fold in range(1, 5) for number in range(8)]
    corpus = ESC50(write_index(tmp_path, rows), test_fold=2)
    assert {clip.id[0] for split in ("train", "val") for clip in corpus.clips(split)} == {"1", "3", "4"}
    with pytest.raises(ValueError, match="test_fold=5 is not in the index of .*; set dataset.test_fold to one of 1, 2"):
        ESC50(tmp_path, test_fold=5)


def test_splits_share_no_clip(root):
    corpus = ESC50(root)
    ids = [clip.id for split in SPLITS for clip in corpus.clips(split)]
    assert len(ids) == len(set(ids)) == NUM_CLIPS


def test_train_and_val_share_no_recording(root, sources):
    corpus = ESC50(root)
    train, val = ({sources[clip.id] for clip in corpus.clips(split)} for split in ("train", "val"))
    assert val and not train & val


def test_val_has_about_a_tenth_of_each_class(root):
    """A tenth of 16 clips is 1.6, and every recording has two clips."""
    labels = Counter(clip.label for clip in ESC50(root).clips("val"))
    assert labels == dict.fromkeys(SOUNDS, 2)


def test_recording_in_two_classes_stays_in_one_split(tmp_path):
    rows = [f"{label}{i}.wav,1,{label},{i}" for label in "ab" for i in range(20)]
    corpus = ESC50(write_index(tmp_path, rows), train_folds=[1], test_folds=[])
    train, val = ({clip.id[1:] for clip in corpus.clips(split)} for split in ("train", "val"))
    assert val and not train & val


@pytest.mark.parametrize(
    ("sizes", "fraction", "count"),
    [
        ({"a": 4, "b": 1, "c": 1, "d": 1, "e": 1, "f": 24}, 0.1, 3),  # of 32, in any order
        ({"a": 2, "b": 2}, 0.1, 2),  # at least one clip, and a recording of two is the closest
        ({"a": 1, "b": 9}, 0.1, 1),
        ({"a": 3}, 0.1, 0),  # the only recording remains for training
        ({"a": 1, "b": 1}, 0.0, 0),
        ({"a": 6, "b": 6}, 0.1, 0),  # six clips are farther from one than none
    ],
)
def test_held_out_recordings_are_close_to_the_fraction(sizes, fraction, count):
    for order in (list(sizes), list(sizes)[::-1]):
        chosen = choose_val_recordings(sizes, order, fraction, set())
        assert sum(sizes[name] for name in chosen) == count


def test_val_folds_replace_the_fraction(root):
    corpus = ESC50(root, train_folds=[1, 2, 3], val_folds=[4])
    assert [len(corpus.clips(split)) for split in SPLITS] == [NUM_CLIPS * 3 // 5, NUM_CLIPS // 5, NUM_CLIPS // 5]


def test_split_is_the_same_on_every_call(root):
    assert ESC50(root).clips("val") == ESC50(root).clips("val")


def test_captions_are_made_by_templates(root):
    clip = ESC50(root, templates=["the sound of {}", "{}, and {}"]).clips("test")[0]
    assert clip.captions == (f"the sound of {clip.label}", f"{clip.label}, and {clip.label}")
    assert "_" not in clip.label and clip.captions_from_labels


def test_braces_in_a_template_are_text(root):
    assert ESC50(root, templates=["{}: {name}"]).clips("test")[0].captions[0].endswith(": {name}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_folds": [1, 7]},
            r"^train_folds=\[1, 7\]: fold 7 is not in the index of .*; choose from 1, 2, 3, 4, 5, as the argument",
        ),
        (
            {"test_folds": [4, 5]},
            "fold 4 is in train_folds and in test_folds; remove it from one of them",
        ),
        ({"val_folds": [5], "test_folds": [5]}, "fold 5 is in val_folds and in test_folds"),
        (
            {"test_fold": 4, "train_folds": [1, 2], "val_folds": [3]},
            r"^test_fold=4 and train_folds=\[1, 2\], val_folds=\[3\] exclude each other: .*; set "
            r"dataset.test_fold=null, or dataset.train_folds=null dataset.val_folds=\[\]$",
        ),
        ({"test_fold": True}, "test_fold=True is not in the index"),
        ({"train_folds": ["1"]}, "fold '1' is not in the index"),
        ({"templates": ["a dog"]}, r"templates=\['a dog'\]: each needs {} for the label; set dataset.templates"),
        ({"templates": []}, r"templates=\[\]: each needs {}"),
        ({"val_fraction": 1.0}, "^val_fraction=1.0 must be 0 or more and below 1; the remaining clips"),
    ],
)
def test_invalid_option_is_a_one_line_error(root, options, message):
    with pytest.raises(ValueError, match=message) as error:
        ESC50(root, **options).clips("train")
    assert "\n" not in str(error.value)


def test_evaluation_needs_only_its_own_folds(tmp_path):
    rows = [f"5-{number}-A-0.wav,5,dog,{number}" for number in range(3)]
    corpus = ESC50(write_index(tmp_path, rows))
    assert len(corpus.clips("test")) == 3
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"train_folds=\[1, 2, 3, 4\]: fold 1 is not in the index"):
            corpus.clips(split)


def test_evaluation_can_use_a_fold_of_the_train_split(root):
    assert ESC50(root, test_folds=[4]).clips("test")


@pytest.mark.parametrize("fold", ["x", "", "1.0", "²"])
def test_invalid_fold_names_its_line(tmp_path, fold):
    write_index(tmp_path, ["a.wav,1,dog,1", f"b.wav,{fold},dog,2"])
    with pytest.raises(ValueError, match=f"esc50.csv, line 3: fold='{fold}' is not one of 1 ... 5"):
        ESC50(tmp_path)


def test_missing_column_is_named(tmp_path):
    write_index(tmp_path, ["a.wav,1,dog"], header="filename,fold,category")
    with pytest.raises(ValueError, match="column src_file is missing; the columns are filename, fold, category"):
        ESC50(tmp_path)


@pytest.mark.parametrize("folder", [".", "absent"])
def test_missing_index_names_the_key_and_the_source(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="esc50.csv is missing; root=.*github.com/karolpiczak/ESC-50"):
        ESC50(tmp_path / folder)


def test_missing_recording_is_named(root):
    corpus = ESC50(root)
    path = corpus.clips("test")[3].path
    path.rename(path.with_suffix(".gone"))
    try:
        with pytest.raises(FileNotFoundError, match=f"1 of {NUM_CLIPS // 5} recordings .* the first is {path}"):
            ClapDataset(corpus, "test", sample_rate=16_000, settings=DatasetSettings(max_bad_fraction=0.0))
    finally:
        path.with_suffix(".gone").rename(path)


def test_published_count_depends_on_folds_and_classes(root):
    corpus = ESC50(root, train_folds=[1, 2, 3], val_folds=[4])
    fold = 8 * len(SOUNDS)
    assert corpus.counts == {"train": 3 * fold, "val": fold, "test": fold}
    assert ESC50(root).counts == {"train": None, "val": None, "test": fold}


def test_fewer_clips_than_published_is_a_warning(root, caplog):
    ClapDataset(ESC50(root), "test", sample_rate=16_000)
    assert f"esc50 (test) lists {NUM_CLIPS // 5} of {8 * len(SOUNDS)} published clips" in caplog.text

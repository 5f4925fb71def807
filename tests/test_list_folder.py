"""The index of a folder with a subfolder for each class."""

from collections import Counter
from pathlib import Path

import pytest

from clap.__main__ import main
from clap.commands.list_folder import divide, list_folder
from clap.dataset.csv import CSV

FRACTIONS = {"test": 0.2, "val": 0.1}


def make_folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_index_is_read_with_labels_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture):
    names = [f"{label}/{number}, take.wav" for label in ("dog", "crying_baby") for number in range(10)]
    folder = make_folder(tmp_path / "sounds", *names, "dog/notes.txt")
    main(["list", str(folder), "--output", str(tmp_path / "clips.csv")])
    corpus = CSV(folder, tmp_path / "clips.csv")
    found = {split: Counter(clip.label for clip in corpus.clips(split)) for split in ("train", "val", "test")}
    assert found == {split: {"dog": n, "crying baby": n} for split, n in (("train", 7), ("val", 1), ("test", 2))}
    assert all(clip.path.is_file() for split in found for clip in corpus.clips(split))
    assert "20 clips of 2 classes: 14 train, 2 val, 4 test" in capsys.readouterr().out


def test_label_is_the_first_subfolder(tmp_path: Path):
    folder = make_folder(tmp_path, "dog/monday/a.wav", "rain/b.flac")
    rows = list_folder(folder, FRACTIONS)
    assert {row["path"]: row["label"] for row in rows} == {"dog/monday/a.wav": "dog", "rain/b.flac": "rain"}


def test_subfolders_named_as_splits_are_splits(tmp_path: Path):
    folder = make_folder(tmp_path, "train/dog/a.wav", "test/dog/b.wav", "val/rain/c.wav")
    rows = list_folder(folder, FRACTIONS)
    assert [tuple(row[name] for name in ("path", "label", "split")) for row in rows] == [
        ("test/dog/b.wav", "dog", "test"),
        ("train/dog/a.wav", "dog", "train"),
        ("val/rain/c.wav", "rain", "val"),
    ]


def split_sizes(clips: int, **fractions: float) -> tuple[int, ...]:
    """Clips of a class in train, val and test, next to another class; each is a recording of its own."""
    labels = ["dog"] * clips + ["rain"] * 7
    splits = divide(labels, list(map(str, range(len(labels)))), {**FRACTIONS, **fractions}, 0)
    return tuple(splits[:clips].count(split) for split in ("train", "val", "test"))


@pytest.mark.parametrize(
    ("clips", "sizes"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (40, (28, 4, 8))]
)
def test_each_class_is_divided_and_keeps_training_clips(clips: int, sizes: tuple[int, int, int]):
    assert split_sizes(clips) == sizes


def test_large_fractions_leave_a_training_clip():
    assert split_sizes(1, test=0.9, val=0.0)[0] == 1
    assert split_sizes(4, test=0.6, val=0.39)[0] == 1


def test_seed_chooses_the_division():
    labels, names = ["dog"] * 20, list(map(str, range(20)))
    first, again, other = (divide(labels, names, FRACTIONS, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_clips_cut_from_one_recording_stay_together(tmp_path: Path):
    """Names as in ESC-50, whose second number is the recording; the index names it."""
    kinds = enumerate(("dog", "rain"))
    names = [
        f"{label}/1-{100 * kind + n}-{take}-{kind}.wav" for kind, label in kinds for n in range(10) for take in "AB"
    ]
    folder = make_folder(tmp_path / "sounds", *names)
    main(["list", str(folder), "--output", str(tmp_path / "clips.csv")])
    corpus = CSV(folder, tmp_path / "clips.csv")
    found = {split: {clip.source for clip in corpus.clips(split)} for split in ("train", "val", "test")}
    assert {split: len(sources) for split, sources in found.items()} == {"train": 14, "val": 2, "test": 4}
    assert len(set.union(*found.values())) == 20
    assert "freesound:103" in set.union(*found.values())


def test_recording_outside_the_folders_of_classes_is_named(tmp_path: Path):
    folder = make_folder(tmp_path, "dog/a.wav", "b.wav")
    with pytest.raises(ValueError, match="b.wav is not in the folder of a class; move it to .*CLASS/b.wav"):
        list_folder(folder, FRACTIONS)


def test_existing_index_is_kept(tmp_path: Path):
    folder = make_folder(tmp_path / "sounds", "dog/a.wav")
    (tmp_path / "clips.csv").write_text("mine")
    with pytest.raises(SystemExit, match="clips.csv exists; give a new file, or delete this one"):
        main(["list", str(folder), "--output", str(tmp_path / "clips.csv")])
    assert (tmp_path / "clips.csv").read_text() == "mine"


def test_fractions_without_training_clips_are_refused(tmp_path: Path):
    arguments = ["list", str(tmp_path), "--output", str(tmp_path / "clips.csv"), "--test-fraction", "0.9"]
    with pytest.raises(SystemExit, match="--val-fraction 0.1 and --test-fraction 0.9 must be 0 or more, and together"):
        main(arguments)

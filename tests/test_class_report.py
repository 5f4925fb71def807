"""The tables of a classification against counts by hand, and its picture for few, many and very many classes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from clap.evaluation.class_report import count_confusions, list_confused, plot_confusion, write_class_report
from clap.proportion import wilson_interval

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

NAMES = ["cat", "dog, small", "rain $5"]  # rain occurs in no clip
TARGETS, PREDICTED = [0, 0, 0, 1, 1], [0, 2, 2, 1, 0]


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_tables_count_the_clips(tmp_path: Path):
    write_class_report(tmp_path / "report", NAMES, TARGETS, PREDICTED, "Zero-shot")
    assert read(tmp_path / "report" / "confusion.csv") == [
        ["class \\ predicted", *NAMES],
        ["cat", "1", "0", "2"],
        ["dog, small", "1", "1", "0"],
        ["rain $5", "0", "0", "0"],
    ]
    header, cat, dog, rain = read(tmp_path / "report" / "classes.csv")
    assert header == [
        *("class", "clips", "accuracy", "ci_low", "ci_high"),
        *("predicted", "confused_with", "confused_clips"),
    ]
    interval = wilson_interval(1 / 3, 3)
    assert [float(value) for value in cat[2:5]] == [1 / 3, interval.low, interval.high]
    assert cat[:2] + cat[5:] == ["cat", "3", "2", "rain $5", "2"]
    assert dog[:2] + dog[5:] == ["dog, small", "2", "1", "cat", "1"]
    assert rain == ["rain $5", "0", "", "", "", "2", "", "0"]


def test_confused_pairs_are_ordered_by_their_clips():
    confusion = count_confusions(3, TARGETS, PREDICTED)
    assert list_confused(NAMES, confusion) == [
        "cat → rain $5: 2 of 3 clips",
        "dog, small → cat: 1 of 2 clips",
    ]
    assert list_confused(NAMES, np.diag([1, 2, 3])) == []


@pytest.mark.parametrize("num_classes", [1, 2, 30])
def test_picture_shows_every_class(tmp_path: Path, num_classes: int):
    names = [f"class {'long ' * 9}$ {i}" for i in range(num_classes)]
    plot_confusion(tmp_path / "a.png", names, np.eye(num_classes, dtype=int)[::-1], title="Zero-shot")
    image = imread(tmp_path / "a.png")
    assert min(image.shape[:2]) > 350 and image[..., :3].std() > 0.05


def test_picture_of_very_many_classes_shows_those_with_the_most_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr("clap.evaluation.class_report.MAX_CLASSES", 2)
    monkeypatch.setattr("clap.evaluation.class_report.draw_shares", lambda _, shares, names, **__: drawn.append(names))
    plot_confusion(tmp_path / "a.png", NAMES, count_confusions(3, [0, 1, 1, 2, 2], [0, 2, 2, 2, 1]), title="Zero-shot")
    assert drawn == [["dog, small", r"rain \$5"]]


@pytest.mark.parametrize(
    ("targets", "predicted", "message"),
    [
        ([0, 1], [0], r"targets \(2,\) and predicted \(1,\)"),
        ([], [], "at least one clip"),
        ([0, 3], [0, 1], "targets runs from 0 to 3; class_names has the rows 0 to 2"),
        ([0, 1], [-1, 1], "predicted runs from -1 to 1"),
    ],
)
def test_wrong_arguments_are_refused(targets: list, predicted: list, message: str):
    with pytest.raises(ValueError, match=message):
        count_confusions(3, targets, predicted)

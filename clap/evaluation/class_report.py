"""Report of a classification: confusion matrix and accuracy of each class, as tables and a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from clap.atomic import write_atomic
from clap.plotting import BLUE, GREY, INK, RED, escape, fit_text, new_figure, save_png
from clap.proportion import wilson_interval
from clap.text_table import to_csv

MAX_CLASSES = 250  # in the picture: those with the most errors
MAX_NUMBERS = 20  # classes up to which each cell has its percentage
MAX_NAME = 28  # characters of a class
MAX_PAIRS = 8  # most confused pairs below the matrix
CELL_INCHES = (0.13, 0.5)  # bounds of a cell's side; 0.13 inches fit one line of text
MATRIX_INCHES = 11.0  # preferred side of the matrix


def write_class_report(
    folder: Path, class_names: Sequence[str], targets: ArrayLike, predicted: ArrayLike, title: str
) -> None:
    """Write confusion.csv, classes.csv and confusion.png into a folder.

    confusion.csv counts the clips of each class (rows) by predicted class (columns). classes.csv has for each class its
    clips, the share that is predicted right with its 95 % interval (Wilson 1927), how often it is predicted, and the
    class that it is most often taken for.

    Args:
        class_names: (classes,) all classes that could be predicted.
        targets: (clips,) row of each clip's own class in `class_names`.
        predicted: (clips,) row of its predicted class.
        title: of the picture, such as `Zero-shot, esc50 (test)`.

    Raises:
        ValueError: there is no clip, targets and predicted differ in shape, or a row is not in class_names.
    """
    confusion = count_confusions(len(class_names), targets, predicted)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True)]
    write_atomic(folder / "confusion.csv", to_csv([["class \\ predicted", *class_names], *rows]).encode())
    write_atomic(folder / "classes.csv", to_csv(list_classes(class_names, confusion)).encode())
    plot_confusion(folder / "confusion.png", class_names, confusion, title=title)


def count_confusions(num_classes: int, targets: ArrayLike, predicted: ArrayLike) -> np.ndarray:
    """Clips by own class and predicted class, (classes, classes) int64; see `write_class_report`."""
    targets, predicted = np.asarray(targets), np.asarray(predicted)
    if targets.ndim != 1 or targets.shape != predicted.shape or not targets.size:
        raise ValueError(
            f"targets {targets.shape} and predicted {predicted.shape}; give (clips,) for both, with at least one clip"
        )
    for name, rows in (("targets", targets), ("predicted", predicted)):
        if rows.min() < 0 or rows.max() >= num_classes:
            raise ValueError(
                f"{name} runs from {rows.min()} to {rows.max()}; class_names has the rows 0 to {num_classes - 1}"
            )
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    return confusion


def list_classes(class_names: Sequence[str], confusion: np.ndarray) -> list[list[object]]:
    """The lines of classes.csv, the header first; a class without clips has no accuracy."""
    header = ["class", "clips", "accuracy", "ci_low", "ci_high", "predicted", "confused_with", "confused_clips"]
    lines: list[list[object]] = [header]
    for place, (name, row) in enumerate(zip(class_names, confusion, strict=True)):
        clips, right, accuracy = int(row.sum()), row[place], ["", "", ""]
        if clips:
            interval = wilson_interval(right / clips, clips)
            accuracy = [right / clips, interval.low, interval.high]
        others = row * (np.arange(len(row)) != place)
        confused = [class_names[others.argmax()], others.max()] if others.any() else ["", 0]
        lines.append([name, clips, *accuracy, confusion[:, place].sum(), *confused])
    return lines


def list_confused(class_names: Sequence[str], confusion: np.ndarray) -> list[str]:
    """The most confused pairs, `dog → rooster: 12 of 40 clips`; of equal numbers the first classes."""
    errors = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    order = np.argsort(-errors, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [divmod(int(place), len(confusion)) for place in order]
    return [
        f"{class_names[own]} → {class_names[other]}: {errors[own, other]} of {confusion[own].sum()} clips"
        for own, other in pairs
        if errors[own, other]
    ]


def plot_confusion(path: Path, class_names: Sequence[str], confusion: np.ndarray, *, title: str) -> None:
    """Shares of each class's clips by predicted class, with accuracies next to them and the worst pairs below."""
    wrong = confusion.sum(axis=1) - confusion.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MAX_CLASSES])
    names = [fit_text(class_names[row], MAX_NAME) for row in shown]
    clips = confusion.sum(axis=1)[shown]
    shares = confusion[np.ix_(shown, shown)] / np.where(clips, clips, np.nan)[:, None]
    cell = float(np.clip(MATRIX_INCHES / len(shown), *CELL_INCHES))
    side, label_size = max(cell * len(shown), 3.0), min(9.0, cell * 54)  # inches; points: three quarters of a cell
    scale = max(side / 14, 1.0)  # of the other texts, in large pictures
    margin, bars = max(map(len, names)) * label_size / 120, float(np.clip(side / 3, 2.0, 5.0))  # inches
    pairs = list_confused(class_names, confusion)
    height = side + margin + 1.2 * scale + 0.18 * scale * len(pairs)
    figure = new_figure(side + bars + margin + 1.2, height, title="")
    count = "" if len(shown) == len(class_names) else f", {len(shown)} of {len(class_names)} classes"
    figure.suptitle(f"{title}{count}\n{describe(confusion)}", fontsize=12 * scale, fontweight="bold", color=INK)
    matrix, accuracies = figure.subplots(1, 2, sharey=True, width_ratios=[side, bars])
    draw_shares(matrix, shares, names, label_size=label_size)
    draw_accuracies(accuracies, shares.diagonal(), clips, len(class_names), label_size=label_size)
    for label in (matrix.xaxis.label, matrix.yaxis.label, accuracies.title, *accuracies.get_xticklabels()):
        label.set(fontsize=9 * scale, color=INK)
    if pairs:
        worst = "\n".join(["most confused, class → predicted class", *map(escape, pairs)])
        figure.supxlabel(worst, fontsize=9 * scale, color=INK)
    save_png(figure, path)


def describe(confusion: np.ndarray) -> str:
    """`accuracy 43.8 % of 80 clips, chance 10.0 %`; chance is that of random predictions of equally many each."""
    total = confusion.sum()
    return f"accuracy {confusion.trace() / total:.1%} of {total} clips, chance {1 / len(confusion):.1%}"


def draw_shares(axes: Axes, shares: np.ndarray, names: Sequence[str], *, label_size: float) -> None:
    """The matrix; its colours follow the square root of a share, so that rare confusions are visible."""
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest", aspect="auto")
    axes.set_facecolor("#e5e7eb")  # of classes without clips
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.tick_params(length=0, labelsize=label_size, colors=INK)
    axes.set(ylabel="class", xlabel="predicted class")
    if len(names) <= MAX_NUMBERS:
        axes.set_xlabel("predicted class (% of the clips of a class)")
        for row, column in zip(*np.nonzero(np.nan_to_num(shares)), strict=True):
            share = shares[row, column]
            color = "white" if share > 0.35 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)


def draw_accuracies(
    axes: Axes, accuracy: np.ndarray, clips: np.ndarray, num_classes: int, *, label_size: float
) -> None:
    """A bar for each class with its 95 % interval and number of clips, and a line at the chance level."""
    rows = np.flatnonzero(clips)
    intervals = [wilson_interval(accuracy[row], clips[row]) for row in rows]
    ends = np.zeros(len(clips))
    ends[rows] = [interval.high for interval in intervals]
    axes.barh(rows, accuracy[rows], color=BLUE, height=0.7)
    axes.hlines(rows, [interval.low for interval in intervals], ends[rows], color=INK, linewidth=0.8)
    for row, (end, count) in enumerate(zip(ends, clips, strict=True)):
        axes.text(end + 0.02, row, f"n={count}", va="center", fontsize=label_size, color=GREY)
    axes.axvline(1 / num_classes, color=RED, linestyle="--", linewidth=1.0)
    axes.set_title(f"accuracy (dashed: chance {1 / num_classes:.1%})")
    axes.set_xlim(0.0, 1.25)
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelleft=False, length=0)

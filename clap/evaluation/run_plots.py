"""Plots of a run: training curves, validation metrics with their chance levels, and a few clips.

Every function writes one PNG, `plot_run` all of them.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from clap.audio_model import AudioModel
from clap.evaluation.clip_plots import plot_clips
from clap.evaluation.evaluator import is_monitor
from clap.evaluation.results import label_metric
from clap.evaluation.retrieved_clips import RetrievedClips
from clap.plotting import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    draw_curve,
    new_figure,
    save_placeholder,
    save_png,
    style_axes,
)
from clap.run_folder import HISTORY, read_chance, read_history

TRAINING_PANELS = {  # metric: axis label, colour, whether it is noisy
    "train/loss": ("loss", BLUE, True),
    "train/learning_rate": ("learning rate", ORANGE, False),
    "train/logit_scale": ("logit scale", GREEN, False),
    "train/clips_per_second": ("clips / s", PURPLE, True),
}
QUALITY_COLORS = {  # by the last part of a metric's name
    "recall_at_1": BLUE,
    "recall_at_5": ORANGE,
    "recall_at_10": GREEN,
    "mean_average_precision_at_10": RED,
    "mean_average_precision": RED,
    "accuracy": PURPLE,
}


def plot_run(run_dir: Path, clap: AudioModel, found: RetrievedClips) -> None:
    """All plots of a run: its curves, and the captions or classes that a few clips retrieve."""
    folder, history = run_dir / "plots", read_history(run_dir / HISTORY)
    plot_training_curves(history, folder / "training.png")
    plot_quality_curves(history, folder / "quality.png", chance=read_chance(run_dir))
    plot_clips(folder, clap, found)


def plot_training_curves(history: Sequence[dict], path: Path) -> None:
    """Loss, learning rate, logit scale and speed by step, one panel each.

    Args:
        history: [{"step": int, "metrics": {name: value}}], as in metrics.jsonl.
    """
    names = [name for name in TRAINING_PANELS if any(name in entry["metrics"] for entry in history)]
    if not names:
        return save_placeholder(path, title="Training", reason="no training metric has been logged")
    rest = names[1:]
    figure = new_figure(9.0, 4.0 + (2.4 if rest else 0.0), title="Training")
    grid = figure.add_gridspec(2 if rest else 1, max(len(rest), 1), height_ratios=[1.6, 1.0] if rest else None)
    cells = [grid[0, :]] + [grid[1, column] for column in range(len(rest))]
    for name, cell in zip(names, cells, strict=True):
        axes = figure.add_subplot(cell)
        label, color, is_noisy = TRAINING_PANELS[name]
        draw_curve(axes, *select_curve(history, name), color=color, is_noisy=is_noisy)
        style_axes(axes, xlabel="step", ylabel=label)
    return save_png(figure, path)


def plot_quality_curves(history: Sequence[dict], path: Path, *, chance: Mapping[str, float]) -> None:
    """Metrics of validation by step with their chance levels: a panel for each data set and direction or task.

    Recall, mAP, accuracy and other shares of one task are in one panel; a metric of another kind has its own.

    Args:
        history: [{"step": int, "metrics": {name: value}}], as in metrics.jsonl; values are fractions.
        chance: metric -> its chance level, a dashed line.
    """
    panels = group_quality(history, chance)
    if not panels:
        return save_placeholder(path, title="Validation", reason="no validation metric has been logged")
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(5.0 * columns + 0.5, 3.8 * rows + 0.4, title="Validation")
    for axes, (title, names) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        for name, free_color in zip(names, itertools.cycle(PALETTE)):
            last = name.rpartition("/")[2]
            label, color = label_metric(last), QUALITY_COLORS.get(last, free_color)
            if name in chance:
                axes.axhline(chance[name], color=color, linestyle="--", linewidth=0.9)
                label += f" (chance {chance[name]:.3g})" if title in names else f" (chance {chance[name]:.1%})"
            axes.plot(*select_curve(history, name), color=color, marker="o", markersize=4, label=label, clip_on=False)
        axes.set_title(" · ".join(title.split("/")).replace("_", " "), fontsize=11, color=INK)
        if title not in names:
            axes.set_ylim(0.0, 1.0)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        style_axes(axes, xlabel="step", ylabel="")
        legend_title = "dashed: chance" if any(name in chance for name in names) else None
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none", title=legend_title, title_fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return save_png(figure, path)


def select_curve(history: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric."""
    points = [(entry["step"], entry["metrics"][name]) for entry in history if name in entry["metrics"]]
    steps, values = np.array(points, dtype=float).T
    return steps, values


def group_quality(history: Sequence[dict], chance: Mapping[str, float]) -> dict[str, list[str]]:
    """Validation metrics of each panel, those of which higher is better.

    Returns:
        {val/<dataset>/<task>: names of shares, in the order of QUALITY_COLORS}, then {name: [name]} of other metrics.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for entry in history:
        for name, value in entry["metrics"].items():
            if name.startswith("val/") and is_monitor(name) and not name.endswith(("/ci_low", "/ci_high")):
                values[name].append(value)
    known = list(QUALITY_COLORS)
    shares: dict[str, list[str]] = defaultdict(list)
    others = {}
    for name in sorted(values):
        prefix, _, last = name.rpartition("/")
        is_known = name in chance or last.endswith(tuple(known))
        if is_known and all(0 <= value <= 1 for value in values[name]):
            shares[prefix].append(name)
        else:
            others[name] = [name]
    for names in shares.values():
        lasts = {name: name.rpartition("/")[2] for name in names}
        names.sort(key=lambda name: known.index(lasts[name]) if lasts[name] in known else len(known))
    return dict(sorted(shares.items(), reverse=True)) | others

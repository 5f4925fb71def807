"""Bar chart of the scores of classes or prompts, best first."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from clap.plotting import BLUE, INK, ORANGE, RED, fit_text, new_figure, save_png

MAX_BARS = 250  # the lowest ones, if there are more
BAR_INCHES = (0.14, 0.3)  # bounds of a bar's height; 0.14 inches fit one line of text
PREFERRED_INCHES = 9.0  # height of the chart
MAX_NAME = 60  # characters


def plot_bars(
    path: Path,
    names: Sequence[str],
    scores: ArrayLike,
    *,
    title: str,
    xlabel: str,
    chance: ArrayLike,
    bounds: Sequence[tuple[float, float]] | None = None,
    marked: str | None = None,
) -> None:
    """Scores in [0, 1] as horizontal bars, with their intervals and chance levels.

    Args:
        names: (bars,) what is written next to a bar.
        scores: (bars,).
        chance: the chance level of all bars, or (bars,) one for each.
        bounds: (bars,) ends of the interval of each score, if known.
        marked: the name of a bar in another colour.
    """
    scores, chance = np.asarray(scores, dtype=float), np.broadcast_to(chance, len(names))
    order = np.argsort(-scores, kind="stable")[-MAX_BARS:]
    places = np.arange(len(order))
    height = float(np.clip(PREFERRED_INCHES / len(order), *BAR_INCHES))
    figure = new_figure(9.0, height * len(order) + 1.4, title=title)
    axes = figure.add_subplot()
    colors = [ORANGE if names[row] == marked else BLUE for row in order]
    axes.barh(places, scores[order], color=colors, height=0.7)
    if bounds is not None:
        low, high = np.array(bounds)[order].T
        axes.hlines(places, low, high, color=INK, linewidth=0.8)
    axes.vlines(chance[order], places - 0.5, places + 0.5, color=RED, linestyle="--", linewidth=1.0, label="chance")
    axes.set_yticks(places, [fit_text(names[row], MAX_NAME) for row in order])
    axes.tick_params(axis="y", length=0, labelsize=min(9.0, height * 54), colors=INK)
    axes.tick_params(axis="x", labelsize=9, colors=INK)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(xlabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=9, edgecolor="none")
    save_png(figure, path)

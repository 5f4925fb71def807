"""Style shared by all figures; built without pyplot, so without windows and global state."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clap.atomic import write_atomic
from clap.text_table import shorten

# Distinct to colour-blind readers: six colors of Okabe and Ito 2008, and a brown of Tol's notes on color schemes.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
BROWN, INK, GREY = "#661100", "#1f2937", "#6b7280"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BROWN, INK)
DPI = 120
SMOOTHING_POINTS = 60  # a noisy curve of at least this many points is drawn pale under its running mean


def pick_color(index: int) -> str:
    """Color of a configuration by its index in a sweep, in MLflow and in figures; that of the first is not reused."""
    return PALETTE[0 if index == 0 else 1 + (index - 1) % (len(PALETTE) - 1)]


def draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, *, color: str, is_noisy: bool) -> None:
    """Draw a line; many noisy points are drawn pale under their running mean, a single point as a dot."""
    if is_noisy and len(values) >= SMOOTHING_POINTS:
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1.0)
        values = running_mean(values, reach=len(values) // 40)
    axes.plot(steps, values, color=color, linewidth=1.8, marker="o" if len(values) == 1 else None)


def running_mean(values: np.ndarray, *, reach: int) -> np.ndarray:
    """Mean of each point and up to `reach` neighbors on either side, ignoring values that are not finite."""
    windows = [values[max(index - reach, 0) : index + reach + 1] for index in range(len(values))]
    finite = [window[np.isfinite(window)] for window in windows]
    return np.array([window.mean() if window.size else np.nan for window in finite])


def new_figure(width: float, height: float, *, title: str) -> Figure:
    """An empty figure of `width` by `height` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    return figure


def style_axes(axes: Axes, *, xlabel: str, ylabel: str) -> None:
    """Set labels, a light grid and integer ticks on the x axis."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def fit_text(text: str, width: int) -> str:
    """Text of at most `width` characters, in which a dollar sign does not start a formula."""
    return escape(shorten(text, width))


def escape(text: str) -> str:
    return text.replace("$", r"\$")


def save_placeholder(path: Path, *, title: str, reason: str) -> None:
    """Save a figure that says why there is no data."""
    figure = new_figure(6.0, 2.5, title=title)
    figure.text(0.5, 0.4, reason, ha="center", color=GREY)
    save_png(figure, path)


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, creating its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomic(Path(path), content.getvalue())

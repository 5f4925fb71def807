"""Tables and figures of a metric under distortions: a curve over the levels of each, next to the clean value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from clap.atomic import write_atomic
from clap.evaluation.distortions import DISTORTIONS, format_level, parse_metric
from clap.evaluation.query_scores import QueryScores
from clap.plotting import BLUE, GREY, INK, RED, new_figure, save_png, style_axes
from clap.proportion import Interval, clip_interval
from clap.text_table import to_csv

COLUMNS = 4  # panels of a row of the overview


@dataclass(frozen=True)
class Point:
    """A number and its 95 % interval, if it has one."""

    value: float
    interval: Interval | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the interval; the value twice if there is none."""
        return (self.value, self.value) if self.interval is None else (self.interval.low, self.interval.high)


Curve = list[tuple[float | str, Point]]  # levels and their numbers, the mildest level first


@dataclass(frozen=True)
class Frame:
    """What all figures of a report share.

    Attributes:
        metric: in a reader's words.
        note: what the error bars are.
        top: upper end of the axis of the metric; None: as matplotlib chooses it.
        is_share: whether all values are from 0 to 1, and shown in percent.
    """

    clean: Point
    metric: str
    note: str
    chance: float | None
    top: float | None
    is_share: bool


def draw_interval(scores: QueryScores | None) -> Interval | None:
    """The 95 % interval over clips of a metric, see `clip_interval`; None without scores, or for a single clip."""
    if scores is None:
        return None
    counts = np.bincount(scores.clips)
    totals, used = np.bincount(scores.clips, weights=scores.values), counts > 0
    return clip_interval(totals[used], counts[used]) if used.sum() > 1 else None


def write_curves(
    folder: Path,
    clean: Point,
    points: Mapping[str, Point],
    *,
    metric: str,
    data: str,
    note: str,
    chance: float | None = None,
) -> None:
    """Write robustness.csv, NAME.png of each distortion, and overview.png into a folder.

    Args:
        clean: the number without distortion.
        points: metric of a condition, such as `white_noise_20_db` -> its number.
        metric, note: see `Frame`.
        data: in titles, such as `esc50 (test)`.
        chance: chance level of the metric.
    """
    curves = group_points(points)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "robustness.csv", to_csv(list_rows(clean, curves, chance)).encode())
    ends = np.array([point.ends for point in (clean, *points.values())])
    is_share = bool(ends.min() >= 0 and ends.max() <= 1)
    top = min(float(max(ends.max(), chance or 0)) * 1.08, 1.02) if is_share else None
    frame = Frame(clean, metric, note, chance, top, is_share)
    for name, curve in curves.items():
        figure = new_figure(6.4, 4.4, title=f"{DISTORTIONS[name].title}, {data}")
        axes = figure.add_subplot()
        draw_distortion(axes, name, curve, frame)
        axes.set_ylabel(metric, color=INK)
        add_legend(figure, axes, note)
        save_png(figure, folder / f"{name}.png")
    save_png(plot_overview(curves, frame, title=f"Robustness, {data}"), folder / "overview.png")


def group_points(points: Mapping[str, Point]) -> dict[str, Curve]:
    """Distortion -> its curve, in the order of DISTORTIONS."""
    found: dict[str, Curve] = {}
    for metric, point in points.items():
        name, level = parse_metric(metric)
        found.setdefault(name, []).append((level, point))
    return {
        name: sorted(found[name], key=lambda item: item[0], reverse=distortion.is_falling)
        for name, distortion in DISTORTIONS.items()
        if name in found
    }


def list_rows(clean: Point, curves: Mapping[str, Curve], chance: float | None) -> list[list[object]]:
    """The lines of robustness.csv, the header and the clean clips first; a number without interval has none."""
    header = ["distortion", "level", "value", "ci_low", "ci_high", "difference", "chance", "unit"]
    rows = [("clean", "", clean, "")]
    rows += [
        (name, format_level(level), point, DISTORTIONS[name].axis)
        for name, curve in curves.items()
        for level, point in curve
    ]
    lines: list[list[object]] = [header]
    for name, level, point, unit in rows:
        ends = point.ends if point.interval else ("", "")
        difference = round(point.value - clean.value, 9)
        lines.append([name, level, point.value, *ends, difference, "" if chance is None else chance, unit])
    return lines


def draw_distortion(axes: Axes, name: str, curve: Curve, frame: Frame) -> None:
    """A curve with error bars, the clean number with its interval as a line with a band, and the chance level."""
    distortion = DISTORTIONS[name]
    if distortion.neutral is not None and distortion.neutral not in dict(curve):
        curve = sorted([*curve, (distortion.neutral, frame.clean)], key=lambda item: item[0])
    places = np.arange(len(curve)) if distortion.choices else np.array([level for level, _ in curve], dtype=float)
    values = np.array([point.value for _, point in curve])
    low, high = np.array([point.ends for _, point in curve]).T
    style_axes(axes, xlabel=distortion.axis, ylabel="")
    if frame.clean.interval is not None:
        axes.axhspan(*frame.clean.ends, color=GREY, alpha=0.15, linewidth=0)
    axes.axhline(frame.clean.value, color=INK, linestyle="--", linewidth=1.2, label="clean")
    if frame.chance is not None:
        axes.axhline(frame.chance, color=RED, linestyle=":", linewidth=1.4, label="chance")
    bars = (values - low, high - values)
    axes.errorbar(
        places, values, yerr=bars, color=BLUE, marker="o", markersize=5, linewidth=1.8, elinewidth=1.2, capsize=3,
        label="distorted",
    )  # fmt: skip
    if distortion.is_log:
        axes.set_xscale("log")
    if distortion.is_falling:
        axes.invert_xaxis()
    axes.margins(x=0.08 if len(curve) > 1 else 1.0)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [format_level(level) for level, _ in curve])
    if frame.is_share:
        axes.set_ylim(0, frame.top)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def add_legend(figure: Figure, axes: Axes, note: str) -> None:
    """A legend below all panels, and above its entries what the error bars are."""
    options = {"loc": "outside lower center", "ncols": 3, "fontsize": 9, "edgecolor": "none"}
    legend = figure.legend(*axes.get_legend_handles_labels(), title=note, title_fontsize=9, **options)
    legend.get_title().set_color(GREY)


def plot_overview(curves: Mapping[str, Curve], frame: Frame, *, title: str) -> Figure:
    """All distortions in one figure, on one axis of the metric."""
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(3.3 * columns + 0.6, 2.8 * rows + 1.1, title=title)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        draw_distortion(axes, name, curve, frame)
        axes.set_title(DISTORTIONS[name].title, fontsize=10, color=INK)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(frame.metric, color=INK)
    add_legend(figure, panels[0], frame.note)
    return figure

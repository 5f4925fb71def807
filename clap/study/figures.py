"""Figures of a study, each as PNG and SVG: main effects, interactions, learning curves, cost against quality.

Files are reproducible: the same runs give the same bytes, without dates and versions, and with a fixed SVG hash salt.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from clap.evaluation.results import label_metric
from clap.plotting import (
    BLUE,
    GREY,
    INK,
    PALETTE,
    SMOOTHING_POINTS,
    new_figure,
    pick_color,
    running_mean,
    style_axes,
)
from clap.study.runs import TRAIN_LOSS, Cell, StudyRuns, shorten_key
from clap.study.scores import Column, Estimate
from clap.study.statistics import MIN_FOLDS, MIN_SEEDS
from clap.study.table import Row, format_estimate
from clap.text_table import format_number

GROUP_SIZE = len(PALETTE) - 1  # cells in a panel besides the baseline, each with a color of its own
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CAPTIONS = {
    "main_effects": "Main effects: {effect}. {bars}",
    "interaction": "Interaction: means of pairs of levels; without interaction, the lines are parallel. {bars}",
    "learning_curves": "Learning curves: mean over {repeats}, with a band from the lowest to the highest {run}. "
    "{smoothed}",
    "cost_quality": "Cost against quality: means over {repeats}. By these means, no cell is both faster and better "
    "than one on the Pareto front. {bars}",
}
CURVES_WIDTH = 9.5  # inches
WIDE_RANGE = 10.0  # ratio of largest to smallest cost above which the axis is logarithmic


@dataclass(frozen=True)
class Averages:
    """Estimates for the levels of some factors, averaged over the same combinations of the other factors.

    Attributes:
        points: levels -> estimate.
        used, total: number of combinations of the other factors that have all levels, and of all combinations.
    """

    points: dict[tuple[str, ...], Estimate]
    used: int
    total: int


@dataclass(frozen=True)
class Style:
    """Color and marker of a cell in all figures."""

    color: str
    marker: str


def draw_study(runs: StudyRuns, rows: Sequence[Row]) -> dict[str, Figure]:
    """Name -> figure, for all figures that the runs allow."""
    figures = {
        "main_effects": plot_main_effects(runs) if runs.is_grid else plot_differences(runs, rows),
        "interaction": plot_interactions(runs),
        "learning_curves": plot_learning_curves(runs),
        "cost_quality": plot_cost(runs, rows),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def describe_figure(name: str, runs: StudyRuns) -> str:
    """Caption of a figure: what its points and error bars are."""
    others = " over the other factors" if len(runs.study.factors) > 1 else ""
    effect = f"mean of each level{others}" if runs.is_grid else "paired differences from the baseline"
    smoothed = any(len(steps) >= SMOOTHING_POINTS for steps, _ in runs.curves[TRAIN_LOSS].values())
    clips = " and clips" if runs.columns[0].has_clips else ""
    over = f"seeds{clips}" if any(len(cell.complete) >= MIN_SEEDS for cell in runs.cells) else ""
    over = over or ("folds" if runs.num_folds >= MIN_FOLDS else "")
    bars = f"Error bars are 95 % intervals over {over}, without correction for multiple comparisons."
    repeats = "seeds and folds" if runs.has_folds else "seeds"
    return (
        CAPTIONS[name]
        .format(
            effect=effect,
            smoothed="The training loss of each seed is smoothed by a running mean." if smoothed else "",
            bars=bars if over else "",
            repeats=repeats,
            run="run" if runs.has_folds else "seed",
        )
        .strip()
    )


def save_png_and_svg(figure: Figure, stem: Path) -> None:
    """Save a figure as STEM.png and STEM.svg, with reproducible bytes."""
    figure.savefig(f"{stem}.png", metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": stem.name}):
        figure.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})


def average_levels(runs: StudyRuns, factors: Sequence[str]) -> Averages:
    """Average the leading metric per level of `factors` over the combinations of other factors that all levels have."""
    groups: dict[tuple, dict[tuple, Cell]] = defaultdict(dict)
    for cell in runs.cells:
        if cell.complete:
            rest = tuple(level for factor, level in cell.levels.items() if factor not in factors)
            groups[tuple(cell.levels[factor] for factor in factors)][rest] = cell
    others = [levels for factor, levels in runs.study.factors.items() if factor not in factors]
    combinations = list(itertools.product(*others))
    used = [rest for rest in combinations if all(rest in group for group in groups.values())]
    column = runs.columns[0]
    points = {levels: estimate_mean(column, [group[rest] for rest in used]) for levels, group in groups.items()}
    return Averages(points if used else {}, len(used), len(combinations))


def estimate_mean(column: Column, cells: Sequence[Cell]) -> Estimate | None:
    """Mean over cells, with its interval over the seeds that all cells have."""
    if not cells:
        return None
    seeds = [seed for seed in cells[0].complete if all(seed in cell.complete for cell in cells)]
    if seeds:
        return column.estimate(*(cell.replicates(seeds) for cell in cells))
    return Estimate(float(np.mean([column.estimate(cell.replicates()).mean for cell in cells])))


def bounds(point: Estimate) -> tuple[float, float]:
    """Lower and upper end of an error bar; the mean twice without an interval."""
    return (point.interval.low, point.interval.high) if point.interval else (point.mean, point.mean)


def mark_chance(panels: Sequence[Axes], label: str, chance: float | None, *, along: str) -> str:
    """Draw the chance level as a thin dashed line, unless that would halve the scale; return the label of the axis.

    Args:
        along: the axis of the metric, x or y.
    """
    if chance is None:
        return label
    low, high = sorted(panels[0].get_xlim() if along == "x" else panels[0].get_ylim())
    is_near = 2 * low - high <= chance <= 2 * high - low
    for axes in panels if is_near else ():
        draw = axes.axvline if along == "x" else axes.axhline
        draw(chance, color=GREY, linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
    text = f"{'dashed: ' if is_near else ''}chance {format_number(chance)}"
    return f"{label} ({text})" if along == "x" else f"{label}\n({text})"


def plot_main_effects(runs: StudyRuns) -> Figure:
    """One panel per factor, one row per level: mean over the other factors."""
    factors = runs.study.factors
    figure, panels = make_row_panels([len(levels) for levels in factors.values()], title="Main effects")
    for (factor, levels), axes in zip(factors.items(), panels, strict=True):
        averages = average_levels(runs, [factor])
        names = [f"{level} (baseline)" if level == levels[0] else level for level in levels]
        draw_rows(axes, names, [averages.points.get((level,)) for level in levels])
        limits = f", over {averages.used} of {averages.total} combinations" if averages.used < averages.total else ""
        axes.set_title(shorten_key(factor) + limits, fontsize=11, color=INK, loc="left")
    column = runs.columns[0]
    panels[-1].set_xlabel(mark_chance(panels, column.label, column.chance, along="x"), color=INK)
    return figure


def plot_differences(runs: StudyRuns, rows: Sequence[Row]) -> Figure | None:
    """One panel per factor, one row per level other than the baseline: paired difference from the baseline."""
    baseline = runs.cells[0].levels
    factors = {factor: [row for row in rows if row.cell.levels[factor] != level] for factor, level in baseline.items()}
    factors = {factor: changed for factor, changed in factors.items() if changed}
    if not factors:
        return None
    figure, panels = make_row_panels([len(changed) for changed in factors.values()], title="One factor at a time")
    metric = runs.columns[0].metric
    for (factor, changed), axes in zip(factors.items(), panels, strict=True):
        results = [row.results.get(metric) for row in changed]
        found = [result.comparison if result else None for result in results]
        points = [Estimate(difference.difference, difference.interval) if difference else None for difference in found]
        draw_rows(axes, [row.cell.levels[factor] for row in changed], points, sign="+")
        axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
        axes.set_title(f"{shorten_key(factor)}, baseline {baseline[factor]}", fontsize=11, color=INK, loc="left")
    panels[-1].set_xlabel(f"{runs.columns[0].label}, difference from the baseline", color=INK)
    return figure


def make_row_panels(sizes: Sequence[int], *, title: str) -> tuple[Figure, list[Axes]]:
    """Stacked panels with a shared x axis, with heights by their numbers of rows."""
    figure = new_figure(8.0, 1.1 + sum(0.55 + 0.36 * size for size in sizes), title=title)
    axes = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=[size + 0.4 for size in sizes])
    return figure, list(axes[:, 0])


def draw_rows(axes: Axes, names: Sequence[str], points: Sequence[Estimate | None], sign: str = "") -> None:
    """One row per name, the first on top: a point with its error bar, and the number next to it."""
    for place, point in enumerate(points):
        if point is not None:
            axes.plot(bounds(point), [place, place], color=BLUE, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
            axes.plot(point.mean, place, color=BLUE, marker="o", markersize=7)
        words = "no result" if point is None else format_estimate(point.mean, point.interval, sign)
        axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK)
    style_axes(axes, xlabel="", ylabel="")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def plot_interactions(runs: StudyRuns) -> Figure | None:
    """One panel per pair of factors of a grid: one line per level of one factor over the levels of the other."""
    pairs = [pair for pair in itertools.combinations(runs.study.factors, 2) if runs.is_grid]
    averages = {pair: average_levels(runs, pair) for pair in pairs}
    averages = {pair: found for pair, found in averages.items() if varies_both_factors(found)}
    if not averages:
        return None
    columns = min(len(averages), 2)
    rows = -(-len(averages) // columns)
    figure = new_figure(6.4 if columns == 1 else 11.0, 4.2 * rows, title="Interaction")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (pair, found) in zip(panels.flat, averages.items(), strict=False):
        draw_interaction(axes, runs, pair, found.points)
    label = mark_chance(panels.flat[: len(averages)], runs.columns[0].label, runs.columns[0].chance, along="y")
    for axes in panels[:, 0]:
        axes.set_ylabel(label, color=INK)
    for axes in panels.flat[len(averages) :]:
        axes.remove()
    return figure


def varies_both_factors(averages: Averages) -> bool:
    """Whether the points have at least two levels of each factor."""
    return all(len(set(levels)) > 1 for levels in zip(*averages.points, strict=True)) and bool(averages.points)


def draw_interaction(axes: Axes, runs: StudyRuns, pair: tuple[str, str], points: dict[tuple, Estimate]) -> None:
    """Plot the factor with more levels along x; lines are shifted slightly so that error bars do not overlap."""
    across, along = sorted(pair, key=lambda factor: len(runs.study.factors[factor]))
    if len(runs.study.factors[across]) == len(runs.study.factors[along]):
        along, across = pair
    places, lines = runs.study.factors[along], runs.study.factors[across]
    for index, level in enumerate(lines):
        keys = [(place, level) if pair == (along, across) else (level, place) for place in places]
        known = [(x, points[key]) for x, key in enumerate(keys) if key in points]
        if known:
            shift = 0.06 * (index - (len(lines) - 1) / 2)
            x = [x + shift for x, _ in known]
            style = choose_style(index)
            draw_points(axes, x, [point for _, point in known], style.color, style.marker, level)
    style_axes(axes, xlabel=shorten_key(along), ylabel="")
    many = len(places) * max(map(len, places)) > 44
    axes.set_xticks(range(len(places)), places, rotation=25 if many else 0, ha="right" if many else "center")
    axes.set_xlim(-0.4, len(places) - 0.6)
    add_legend(axes, *axes.get_legend_handles_labels(), title=shorten_key(across))


def add_legend(axes: Axes, lines: Sequence[Line2D], names: Sequence[str], title: str | None = None) -> None:
    """Add a legend to the right of the axes."""
    legend = axes.legend(
        lines, names, title=title, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9, title_fontsize=9
    )
    legend.set_frame_on(False)
    legend.set_alignment("left")


def draw_points(
    axes: Axes, x: Sequence[float], points: Sequence[Estimate], color: str, marker: str, label: str
) -> None:
    """A line through means with error bars."""
    axes.vlines(x, *zip(*(bounds(point) for point in points), strict=True), color=color, alpha=0.5, linewidth=2.2)
    line = "-" if len(points) > 1 else "none"
    means = [point.mean for point in points]
    axes.plot(x, means, linestyle=line, color=color, marker=marker, markersize=6, label=label)


def group_cells(runs: StudyRuns) -> list[list[Cell]]:
    """Group the cells other than the baseline: in one group if few, else by the first factor or the varied factor."""
    others = runs.cells[1:]
    if len(others) <= GROUP_SIZE:
        return [others] if others else []
    groups = defaultdict(list)
    for cell in others:
        changed = [factor for factor, level in cell.levels.items() if level != runs.cells[0].levels[factor]]
        groups[next(iter(cell.levels.values())) if runs.is_grid else changed[0]].append(cell)
    starts = [(group, start) for group in groups.values() for start in range(0, len(group), GROUP_SIZE)]
    return [group[start : start + GROUP_SIZE] for group, start in starts]


def choose_style(index: int) -> Style:
    """Style of the cell with this index, the baseline's is 0; cells with the same color have different markers."""
    return Style(pick_color(index), MARKERS[(index + max(index - 1, 0) // GROUP_SIZE) % len(MARKERS)])


def choose_styles(runs: StudyRuns) -> dict[str, Style]:
    """Cell name -> style, with the color that the cell has in MLflow."""
    return {runs.name(cell): choose_style(index) for index, cell in enumerate(runs.cells)}


def plot_learning_curves(runs: StudyRuns) -> Figure | None:
    """Training loss and leading validation metric by step: one row of panels per group of cells."""
    metrics = [metric for metric, curves in runs.curves.items() if any(len(steps) for steps, _ in curves.values())]
    if not metrics:
        return None
    groups = [[runs.cells[0], *group] for group in group_cells(runs)] or [runs.cells[:1]]
    groups = [[cell for cell in group if cell.complete] for group in groups]
    groups = [group for group in groups if group]
    columns = count_legend_columns([legend_name(runs, cell) for group in groups for cell in group])
    heights = [height for group in groups for height in (0.25 * -(-len(group) // columns), 3.0)]
    figure = new_figure(CURVES_WIDTH, 0.7 + sum(heights), title="Learning curves")
    grid = figure.add_gridspec(len(heights), len(metrics), height_ratios=heights)
    styles, shared = choose_styles(runs), {}
    for row, group in enumerate(groups):
        lines = [Line2D([], [], color=styles[runs.name(cell)].color, linewidth=2.2) for cell in group]
        legend = figure.add_subplot(grid[2 * row, :])
        legend.set_axis_off()
        names = [legend_name(runs, cell) for cell in group]
        legend.legend(lines, names, ncols=columns, fontsize=9, loc="center", frameon=False, borderpad=0)
        for column, metric in enumerate(metrics):
            axes = figure.add_subplot(grid[2 * row + 1, column], sharey=shared.get(metric))
            shared[metric] = axes
            for cell in group:
                draw_band(axes, runs, cell, metric, styles[runs.name(cell)].color)
            label = "training loss" if metric == TRAIN_LOSS else f"val {label_metric(metric)}"
            style_axes(axes, xlabel="step", ylabel=mark_chance([axes], label, runs.chance.get(metric), along="y"))
    return figure


def count_legend_columns(names: Sequence[str]) -> int:
    """Number of columns of a legend as wide as the figure."""
    return max(1, int(CURVES_WIDTH / (0.6 + 0.08 * max(map(len, names)))))


def draw_band(axes: Axes, runs: StudyRuns, cell: Cell, metric: str, color: str) -> None:
    """Mean and range over seeds, at the steps that all seeds have; a noisy loss is smoothed first."""
    curves = [
        dict(zip(*runs.curves[metric][run_id], strict=True)) for replicate in cell.replicates() for run_id in replicate
    ]
    steps = sorted(set.intersection(*map(set, curves)))
    if not steps:
        return
    values = np.array([[curve[step] for step in steps] for curve in curves])  # (seeds, steps)
    if metric == TRAIN_LOSS and len(steps) >= SMOOTHING_POINTS:
        values = np.stack([running_mean(curve, reach=len(steps) // 40) for curve in values])
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    axes.plot(steps, values.mean(axis=0), color=color, linewidth=1.8, marker="o" if len(steps) < 10 else None, ms=4)


def legend_name(runs: StudyRuns, cell: Cell) -> str:
    name = runs.name(cell)
    return f"{name} (baseline)" if cell is runs.cells[0] and name != "baseline" else name


def plot_cost(runs: StudyRuns, rows: Sequence[Row]) -> Figure | None:
    """Leading metric over minutes, with the Pareto front; the legend is sorted, best cell first."""
    column, styles = runs.columns[0], choose_styles(runs)
    rows = [row for row in rows if "cost/seconds" in row.cost]
    if not rows:
        return None
    rows.sort(key=lambda row: row.results[column.metric].estimate.mean, reverse=True)
    minutes = [row.cost["cost/seconds"] / 60 for row in rows]
    points = [row.results[column.metric].estimate for row in rows]
    figure = new_figure(9.0, max(4.4, 1.2 + 0.26 * len(rows)), title="Cost against quality")
    axes = figure.add_subplot()
    front = find_pareto_front(minutes, [point.mean for point in points])
    x, y = [minutes[place] for place in front], [points[place].mean for place in front]
    axes.step(x, y, where="post", color=GREY, linestyle=":", linewidth=1.4, zorder=1, label="Pareto front")
    for row, at, point in zip(rows, minutes, points, strict=True):
        style = styles[runs.name(row.cell)]
        draw_points(axes, [at], [point], style.color, style.marker, legend_name(runs, row.cell))
    label = mark_chance([axes], column.label, column.chance, along="y")
    style_axes(axes, xlabel="minutes of training", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    if max(minutes) > WIDE_RANGE * min(minutes) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.08)
    (front_line, *lines), (front_name, *names) = axes.get_legend_handles_labels()
    add_legend(axes, [*lines, front_line], [*names, front_name])
    return figure


def find_pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Indices of the Pareto front, the cheapest first: items whose quality no other has at equal or lower cost."""
    front, best = [], -np.inf
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -qualities[place])):
        if qualities[place] > best:
            front.append(place)
            best = qualities[place]
    return front

"""The report of a search: its best configuration as a command, and pictures of its trials."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from clap.atomic import write_atomic
from clap.config.search_space import Choice, Range, Space
from clap.plotting import BLUE, GREY, INK, ORANGE, PALETTE, RED, new_figure, pick_color, save_png, style_axes
from clap.run_folder import SEARCH_SUMMARY
from clap.text_table import to_markdown

FEWEST_TRIALS = 4  # finished ones, for importances and contours
EDGE = 0.05  # share of an interval at each end in which its best number asks for a wider one
PANEL, PANELS_PER_ROW = (4.6, 3.6), 3  # inches
LEVELS = 12  # of a contour


def write_report(
    study: Study, trials: Sequence[FrozenTrial], space: Space, *, folder: Path, command: str, best_folder: Path | None
) -> None:
    """Write the summary and the pictures of a search to `folder`.

    Args:
        trials: the latest one of each configuration, in the order in which they were drawn.
        command: that trains the best configuration.
        best_folder: its job; None if no trial has finished.
    """
    importances = find_importances(study, trials, space)
    figures = {
        "history": draw_history(trials),
        "slice": draw_slices(trials, space),
        "importance": draw_importances(importances),
        "contour": draw_contour(trials, space, importances),
    }
    for name, figure in figures.items():
        if figure is not None:
            save_png(figure, folder / f"{name}.png")
    best = find_best(trials)
    text = describe_outcomes(trials)
    if best is not None:
        text += f" The best, {best.value:.4f} in validation, is the job `{best_folder.name}`.\n\n"
        text += f"{format_parameters(best, importances)}\n    {command}\n"
        text += "".join(f"\n{line}\n" for line in describe_edges(best, space))
    folder.mkdir(exist_ok=True)
    write_atomic(folder / SEARCH_SUMMARY, text.encode())


def find_best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the highest value, of equal ones the first; None if none has finished."""
    return max(select(trials, TrialState.COMPLETE), key=lambda trial: trial.value, default=None)


def select(trials: Sequence[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == state]


def find_importances(study: Study, trials: Sequence[FrozenTrial], space: Space) -> dict[str, float]:
    """Share of each parameter in the variance of the values (fANOVA, Hutter et al. 2014), the highest first.

    Empty for a single parameter, and with too few finished trials.
    """
    finished = select(trials, TrialState.COMPLETE)
    if len(space) < 2 or len(finished) < FEWEST_TRIALS or len({trial.value for trial in finished}) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(space))


def describe_outcomes(trials: Sequence[FrozenTrial]) -> str:
    names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    counts = {name: len(select(trials, state)) for state, name in names.items()}
    what = "configuration" if len(trials) == 1 else "configurations"
    return f"{len(trials)} {what}: {', '.join(f'{n} {name}' for name, n in counts.items() if n)}."


def format_parameters(best: FrozenTrial, importances: Mapping[str, float]) -> str:
    """A Markdown table of the best configuration, with the importance of each parameter."""
    rows = [[key, f"{best.params[key]}", f"{importances[key]:.2f}"] for key in importances]
    rows = rows or [[key, f"{value}"] for key, value in best.params.items()]
    return to_markdown([["parameter", "best", "importance"][: len(rows[0])], *rows])


def describe_edges(best: FrozenTrial, space: Space) -> list[str]:
    """Intervals whose best number is at an end, beyond which a better one may be."""
    lines = []
    for key, domain in space.items():
        if isinstance(domain, Range) and not EDGE <= (share := find_share(best.params[key], domain)) <= 1 - EDGE:
            end = "lower" if share < 0.5 else "upper"
            lines.append(
                f"{key}={best.params[key]} is at the {end} end of its interval; a wider one may have a better."
            )
    return lines


def find_share(value: float, domain: Range) -> float:
    """Where a number is in its range, from 0 to 1, of a logarithmic range by its logarithm."""
    low, high, value = (math.log(n) if domain.log else n for n in (domain.low, domain.high, value))
    return (value - low) / (high - low) if high > low else 0.5


def draw_history(trials: Sequence[FrozenTrial]) -> Figure:
    """The value of each trial in order, and the best so far."""
    figure = new_figure(7.5, 4.2, title="History of the search")
    axes = figure.subplots()
    style_axes(axes, xlabel="configuration", ylabel="validation metric")
    order = {trial.number: position for position, trial in enumerate(trials, start=1)}
    draw_outcomes(axes, trials, [order[trial.number] for trial in trials])
    finished = select(trials, TrialState.COMPLETE)
    best = np.maximum.accumulate([trial.value for trial in finished])
    steps = [order[trial.number] for trial in finished]
    if finished:
        axes.step(
            [*steps, len(trials)], [*best, best[-1]], where="post", color=ORANGE, linewidth=1.8, label="best so far"
        )
    add_legend(figure, [axes])
    return figure


def add_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """A legend of all panels below them, each label once."""
    found = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    marks, labels = list(found.values()), list(found)
    figure.legend(marks, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9, labelcolor=INK)


def draw_outcomes(
    axes: Axes, trials: Sequence[FrozenTrial], positions: Sequence[float], *, label: str = "finished", color: str = BLUE
) -> None:
    """Draw finished trials as dots, pruned ones as crosses at their last validation, and failed ones at the bottom."""
    points = {state: [] for state in TrialState}
    for x, trial in zip(positions, trials, strict=True):
        has_value = trial.value is not None and trial.state != TrialState.FAIL
        points[trial.state if has_value else TrialState.FAIL].append((x, trial.value if has_value else 0.02))
    bottom = axes.get_xaxis_transform()
    for state, look in {
        TrialState.COMPLETE: {"marker": "o", "color": color, "label": label},
        TrialState.PRUNED: {"marker": "x", "color": GREY, "label": "pruned"},
        TrialState.FAIL: {"marker": "|", "color": RED, "label": "failed", "transform": bottom},
    }.items():
        if points[state]:
            axes.scatter(*zip(*points[state], strict=True), s=30, zorder=3, **look)


def draw_slices(trials: Sequence[FrozenTrial], space: Space) -> Figure:
    """The value against each parameter; points have the color of the first choice."""
    rows = math.ceil(len(space) / PANELS_PER_ROW)
    columns = min(len(space), PANELS_PER_ROW)
    figure = new_figure(PANEL[0] * columns + 0.6, PANEL[1] * rows + 0.6, title="Value against each parameter")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    groups = group_by_choice(trials, space)
    for axes, (key, domain) in zip(panels, space.items(), strict=False):
        style_axes(axes, xlabel=key, ylabel="validation metric" if axes in panels[::columns] else "")
        for index, (name, own) in enumerate(groups.items()):
            draw_outcomes(axes, own, place(own, key, domain), label=name, color=pick_color(index))
        set_scale(axes, domain)
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    add_legend(figure, panels)
    return figure


def group_by_choice(trials: Sequence[FrozenTrial], space: Space) -> dict[str, list[FrozenTrial]]:
    """The trials by the first parameter that is a choice of a few values; all under "finished" without one."""
    keys = [key for key, domain in space.items() if isinstance(domain, Choice) and domain.count <= len(PALETTE)]
    if not keys:
        return {"finished": list(trials)}
    return {value: [trial for trial in trials if trial.params[keys[0]] == value] for value in space[keys[0]].values}


def place(trials: Sequence[FrozenTrial], key: str, domain: Choice | Range) -> list[float]:
    """Positions of trials on the axis of a parameter; those of one choice are spread a little."""
    if isinstance(domain, Range):
        return [trial.params[key] for trial in trials]
    spread = np.linspace(-0.15, 0.15, max(len(trials), 1))
    return [domain.values.index(trial.params[key]) + shift for trial, shift in zip(trials, spread, strict=True)]


def set_scale(axes: Axes, domain: Choice | Range, *, axis: str = "x") -> None:
    """Scale and ticks of an axis of a parameter."""
    ticks = getattr(axes, f"{axis}axis")
    if isinstance(domain, Choice):
        ticks.set_ticks(range(domain.count), labels=domain.values)
        getattr(axes, f"set_{axis}lim")(-0.5, domain.count - 0.5)
        return
    getattr(axes, f"set_{axis}scale")("log" if domain.log else "linear")
    getattr(axes, f"set_{axis}lim")(*pad(domain))
    if not domain.log:
        ticks.set_major_locator(MaxNLocator(nbins=6, integer=domain.is_integer))


def pad(domain: Range) -> tuple[float, float]:
    """Limits of an axis, with room for points at the ends of a range."""
    if domain.log:
        room = (domain.high / domain.low) ** 0.04
        return domain.low / room, domain.high * room
    room = (domain.high - domain.low) * 0.04 or 0.5
    return domain.low - room, domain.high + room


def draw_importances(importances: Mapping[str, float]) -> Figure | None:
    """Bars of the importances; None without any."""
    if not importances:
        return None
    figure = new_figure(6.5, 1.6 + 0.4 * len(importances), title="Importance of the parameters")
    axes = figure.subplots()
    style_axes(axes, xlabel="share in the variance of the metric", ylabel="")
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, color=INK, fontsize=9)
    axes.set_xlim(0, 1.1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return figure


def draw_contour(trials: Sequence[FrozenTrial], space: Space, importances: Mapping[str, float]) -> Figure | None:
    """The value over the two most important numbers; None with fewer, or with too few finished trials."""
    keys = [key for key in importances if isinstance(space[key], Range)][:2]
    finished = select(trials, TrialState.COMPLETE)
    if len(keys) < 2:
        return None
    shares = np.array([[find_share(trial.params[key], space[key]) for key in keys] for trial in finished])
    if np.linalg.matrix_rank(shares - shares[0], tol=1e-6) < 2:  # on a line
        return None
    figure = new_figure(6.5, 5.0, title="Value over the two most important numbers")
    axes = figure.subplots()
    style_axes(axes, xlabel=keys[0], ylabel=keys[1])
    x, y = ([trial.params[key] for trial in finished] for key in keys)
    values = [trial.value for trial in finished]
    triangles = Triangulation(x, y, Triangulation(*shares.T).triangles)  # near in the scales of the axes
    filled = axes.tricontourf(triangles, values, levels=LEVELS, cmap="viridis")
    axes.scatter(x, y, c=values, cmap="viridis", edgecolors="white", s=36, zorder=3)
    bar = figure.colorbar(filled, ax=axes)
    bar.set_label("validation metric", color=INK)
    for key, axis in zip(keys, "xy", strict=True):
        set_scale(axes, space[key], axis=axis)
    return figure

"""The figure of a check: durations, sample rates, levels, caption lengths and findings."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator, MaxNLocator

from clap.check.limits import FAULTS, OVERLAPS
from clap.check.report import CheckedSplit, Report
from clap.plotting import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, new_figure, style_axes

COLORS = {"train": BLUE, "val": ORANGE, "test": GREEN}
CHANNELS = {1: ("mono", GREY), 2: ("stereo", PURPLE)}
FLOOR = -100.0  # dBFS; lower levels are drawn at this value
BINS = 20
LOG_AXIS_RATIO = 8  # ratio of longest to median duration above which the axis is logarithmic
MIN_ROWS = 5  # of the findings axes, so that a single bar does not fill them


def plot_report(report: Report, path: Path) -> None:
    """Write the figure as PNG; without audio it shows caption lengths and findings only."""
    figure = new_figure(13.0, 7.0 if report.with_audio else 3.8, title=f"Check of {report.name}")
    rows = ["duration", "rate", "level"], ["words", "findings", "findings"]
    axes = figure.subplot_mosaic([*rows] if report.with_audio else [rows[1]])
    if report.with_audio:
        plot_durations(axes["duration"], report.splits)
        plot_rates(axes["rate"], report.splits)
        plot_levels(axes["level"], report.splits, report.limits.silence)
    plot_words(axes["words"], report.splits)
    plot_findings(axes["findings"], report)
    handles, labels = axes["words"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def plot_durations(axes: Axes, splits: Sequence[CheckedSplit]) -> None:
    """Histogram of durations, on a logarithmic axis if a few clips are much longer than the others."""
    values = {split.split: split.durations for split in splits}
    found = [duration for split in values.values() for duration in split] or [1.0]
    top, wide = max(found) * 1.02, max(found) > LOG_AXIS_RATIO * np.median(found)
    edges = np.geomspace(min(found) * 0.98, top, BINS + 1) if wide else np.linspace(0, top, BINS + 1)
    draw_histograms(axes, values, edges)
    style_axes(axes, xlabel="duration / s", ylabel="share of clips")
    axes.xaxis.set_major_locator(AutoLocator())
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")


def plot_levels(axes: Axes, splits: Sequence[CheckedSplit], silence: float) -> None:
    values = {
        split.split: [max(entry.audio.level, FLOOR) for entry in split.entries if entry.audio] for split in splits
    }
    draw_histograms(axes, values, np.linspace(FLOOR, 0, BINS + 1))
    axes.axvline(silence, color=RED, linestyle="--", linewidth=1)
    axes.annotate(
        "silent", (silence, 0.97), xycoords=("data", "axes fraction"), xytext=(-4, 0), textcoords="offset points",
        ha="right", va="top", color=RED, fontsize=9,
    )  # fmt: skip
    style_axes(axes, xlabel="level of the loudest 0.1 s / dBFS", ylabel="share of clips")
    ticks = range(int(FLOOR), 1, 20)
    axes.set_xticks(ticks, [f"≤ {FLOOR:.0f}", *map(str, ticks[1:])])


def plot_words(axes: Axes, splits: Sequence[CheckedSplit]) -> None:
    values = {split.split: split.lengths for split in splits}
    top = max((max(found) for found in values.values() if found), default=1)
    step = max(1, -(-top // 40))
    draw_histograms(axes, values, np.arange(-0.5, top + step + 0.5, step))
    style_axes(axes, xlabel="words per caption", ylabel="share of captions")


def draw_histograms(axes: Axes, values: dict[str, Sequence[float]], edges: np.ndarray) -> None:
    """Shares of each split as outlines over the same bins; the training split is filled."""
    for split, found in values.items():
        if len(found):
            shares = np.histogram(found, edges)[0] / len(found)
            if split == "train":
                axes.stairs(shares, edges, color=COLORS[split], linewidth=0, fill=True, alpha=0.25)
            axes.stairs(shares, edges, color=COLORS[split], linewidth=1.6, label=split)
    axes.set_ylim(bottom=0)


def plot_rates(axes: Axes, splits: Sequence[CheckedSplit]) -> None:
    """Clips of all splits per sample rate, stacked by number of channels."""
    found = [entry.audio for split in splits for entry in split.entries if entry.audio and entry.audio.rate]
    rates = sorted({audio.rate for audio in found})
    counts = Counter((audio.rate, audio.channels) for audio in found)
    bottom = np.zeros(len(rates))
    for channels in sorted({audio.channels for audio in found}):
        heights = np.array([counts[rate, channels] for rate in rates])
        name, color = CHANNELS.get(channels, (f"{channels} channels", INK))
        axes.bar(range(len(rates)), heights, bottom=bottom, color=color, alpha=0.75, width=0.6, label=name)
        bottom += heights
    style_axes(axes, xlabel="sample rate / kHz", ylabel="clips, all splits")
    axes.set_xticks(range(len(rates)), [f"{rate / 1000:g}" for rate in rates])
    room = max(3 - len(rates), 0) / 2  # so that a single bar does not fill the axes
    axes.set_xlim(-0.6 - room, len(rates) - 0.4 + room)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if found:
        axes.set_ylim(top=1.2 * bottom.max())
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")


def plot_findings(axes: Axes, report: Report) -> None:
    """Number of findings of each kind, stacked by the split of the clip; a dash for kinds that were not checked."""
    findings = [*report.findings, *(finding for overlap in report.overlaps for finding in overlap.findings())]
    counts = Counter((finding.kind, finding.split) for finding in findings)
    known = [*FAULTS, *(f"overlap: {kind}" for kind in OVERLAPS)]
    unchecked = report.unchecked
    kinds = [kind for kind in known if kind in unchecked or any(found == kind for found, _ in counts)]
    left = np.zeros(len(kinds))
    for split, color in COLORS.items():
        widths = np.array([counts[kind, split] for kind in kinds])
        axes.barh(range(len(kinds)), widths, left=left, color=color, alpha=0.75, height=0.65)
        left += widths
    style_axes(axes, xlabel="findings", ylabel="")
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlim(0, 1.08 * max([*left, 1]))
    axes.set_ylim(max(len(kinds), MIN_ROWS) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for row, (kind, total) in enumerate(zip(kinds, left, strict=True)):
        text = "– not checked" if kind in unchecked else f"{total:.0f}"
        axes.annotate(text, (total, row), xytext=(4, 0), textcoords="offset points", va="center",
                      color=INK, fontsize=9)  # fmt: skip
    if not kinds:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no findings", ha="center", color=GREY, transform=axes.transAxes)

"""The figure of a check with outliers and few values."""

from types import SimpleNamespace

import pytest

from clap.check.figure import plot_durations, plot_findings
from clap.check.limits import Limits
from clap.check.report import Report
from clap.plotting import new_figure


@pytest.mark.parametrize(("longest", "scale"), [(7.0, "linear"), (180.0, "log")])
def test_axis_is_logarithmic_with_one_long_clip(longest: float, scale: str):
    axes = new_figure(4.0, 3.0, title="").subplots()
    plot_durations(axes, [SimpleNamespace(split="train", durations=[4.0, 5.0, 5.0, longest])])
    assert axes.get_xscale() == scale


def test_kinds_that_were_not_checked_have_a_dash():
    axes = new_figure(4.0, 3.0, title="").subplots()
    plot_findings(axes, Report("x", Limits(), with_audio=False, splits=[]))
    marks = {label.get_text(): mark.get_text() for label, mark in zip(axes.get_yticklabels(), axes.texts, strict=True)}
    assert marks["silent"] == marks["overlap: audio"] == "– not checked" and "count" not in marks

"""The report of a search names its best configuration, and its pictures have every trial."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from optuna.trial import Trial

from clap.config.search_space import Choice, Range, SearchSettings
from clap.study.job import FINISHED, PRUNED, Job
from clap.study.search import Search
from clap.study.search_report import (
    draw_contour,
    draw_history,
    draw_slices,
    find_best,
    find_importances,
    write_report,
)
from clap.study.search_storage import find_trial_id

LR = Range(1e-5, 1e-1, log=True)
SPACE = {"optimizer.lr": LR, "audio_encoder": Choice(("cnn14_nano", "htsat_nano")), "batch_size": Range(8, 64, 8)}


def score(params: dict) -> float:
    return -((math.log10(params["optimizer.lr"]) + 3) ** 2) - 0.1 * (params.get("audio_encoder") == "htsat_nano")


def search(folder: Path, space: dict, count: int, score: Callable = score) -> Search:
    """A search in which the fifth trial is pruned and the sixth has failed."""
    found = Search(SearchSettings(n_trials=count), space, folder)
    for number in range(1, count + 1):
        (trial,) = found.next_trials(1)
        job = Job(folder, "job", FINISHED, value=score(trial.params))
        if number == 5:
            Trial(found.study, find_trial_id(found.study, trial.number)).report(-30.0, 1)
            job.status = PRUNED
        elif number == 6:
            job.status = "failed"
        found.tell(trial, job)
    return found


def trials(found: Search) -> list:
    return list(found.configurations().values())


def count_points(figure: Figure, label: str, panel: int = 0) -> int:
    axes = figure.axes[panel]
    return sum(len(item.get_offsets()) for item in axes.collections if item.get_label() == label)


def test_best_configuration_is_named_with_its_command(tmp_path: Path):
    found = search(tmp_path, SPACE, 12)
    best = find_best(trials(found))
    folder = tmp_path / "search"
    write_report(found.study, trials(found), SPACE, folder=folder, command="python train.py a=b", best_folder=Path("x"))
    text = (folder / "summary.md").read_text()
    assert text.startswith(
        f"12 configurations: 10 finished, 1 pruned, 1 failed. The best, {best.value:.4f} in validation, is the job `x`."
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["parameter", "best", "importance"]
    assert ["optimizer.lr", f"{best.params['optimizer.lr']}"] in [row[:2] for row in rows]
    assert "\n    python train.py a=b\n" in text
    assert {path.name for path in folder.glob("*.png")} == {
        "history.png", "slice.png", "importance.png", "contour.png",
    }  # fmt: skip


def test_search_without_a_finished_trial_is_reported(tmp_path: Path):
    found = Search(SearchSettings(n_trials=1), {"lr": LR}, tmp_path)
    found.tell(found.next_trials(1)[0], None)
    write_report(found.study, trials(found), {"lr": LR}, folder=tmp_path / "search", command="", best_folder=None)
    assert (tmp_path / "search" / "summary.md").read_text() == "1 configuration: 1 failed."
    assert {path.name for path in (tmp_path / "search").glob("*.png")} == {"history.png", "slice.png"}


def test_number_at_the_end_of_its_interval_is_named(tmp_path: Path):
    found = search(tmp_path, {"lr": LR}, 12, score=lambda params: params["lr"])
    best = find_best(trials(found)).params["lr"]
    write_report(found.study, trials(found), {"lr": LR}, folder=tmp_path / "s", command="", best_folder=Path("x"))
    assert best > 0.06
    assert f"lr={best} is at the upper end of its interval" in (tmp_path / "s" / "summary.md").read_text()


def test_most_important_parameter_is_first(tmp_path: Path):
    found = search(tmp_path, SPACE, 14)
    importances = find_importances(found.study, trials(found), SPACE)
    assert next(iter(importances)) == "optimizer.lr" and sum(importances.values()) == pytest.approx(1)
    assert find_importances(found.study, trials(found)[:3], SPACE) == {}


def test_pictures_have_every_trial(tmp_path: Path):
    found = search(tmp_path, SPACE, 12)
    figure = draw_history(trials(found))
    counts = {label: count_points(figure, label) for label in ("finished", "pruned", "failed")}
    assert counts == {"finished": 10, "pruned": 1, "failed": 1}
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == sorted(line.get_ydata())
    figure = draw_slices(trials(found), SPACE)
    for panel in range(3):
        labels = ("cnn14_nano", "htsat_nano", "pruned", "failed")
        assert sum(count_points(figure, label, panel) for label in labels) == 12
    assert figure.axes[0].get_xscale() == "log"
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["cnn14_nano", "htsat_nano"]


def test_contour_needs_two_numbers_and_points_off_a_line(tmp_path: Path):
    found = search(tmp_path, SPACE, 12)
    importances = find_importances(found.study, trials(found), SPACE)
    figure = draw_contour(trials(found), SPACE, importances)
    assert {figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()} == {"optimizer.lr", "batch_size"}
    points = [item for item in figure.axes[0].collections if isinstance(item, PathCollection)]
    assert len(points[-1].get_offsets()) == 10
    assert draw_contour(trials(found), SPACE, {"optimizer.lr": 1.0}) is None
    assert draw_contour(trials(found)[:2], SPACE, importances) is None

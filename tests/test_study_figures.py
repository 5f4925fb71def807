"""Figures of a study: layout, files and averages. A layout warning is an error."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from study_store import make_runs, make_study

from clap.study.factors import Study
from clap.study.figures import (
    average_levels,
    choose_styles,
    describe_figure,
    draw_study,
    find_pareto_front,
    save_png_and_svg,
)
from clap.study.runs import StudyRuns
from clap.study.statistics import fold_interval, seed_interval
from clap.study.table import make_rows

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

TWELVE = {
    "audio_encoder": ["cnn14_nano", "htsat_nano", "cnn14_mini"],
    "text_encoder": ["roberta_nano", "gpt2_nano", "distilroberta", "bert"],
}
STUDIES = {
    "two by two": make_study("a"),
    "twelve cells": make_study("b", factors=TWELVE),
    "three factors": make_study("c", factors={"fusion": ["none", "mean"], **TWELVE}, seeds=["0"]),
    "one at a time": make_study("d", design="one_at_a_time", factors=TWELVE),
    "one factor, one seed": make_study("e", factors={"dataset.batch_size": ["16", "32"]}, seeds=["0"]),
    "one cell": make_study("f", factors={"fusion": ["none"]}),
    "one cell at a time": make_study("g", factors={"fusion": ["none"]}, design="one_at_a_time"),
}


def draw(runs: StudyRuns) -> dict[str, Figure]:
    return draw_study(runs, make_rows(runs))


def overlaps(figure: Figure) -> list[str]:
    """Legends and texts that overlap a panel or each other, and panels outside of the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    panels = [axes for axes in figure.axes if axes.axison]
    words = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    words += [text for axes in panels for text in axes.texts]
    words += [] if figure._suptitle is None else [figure._suptitle]
    boxes = [(str(word), word.get_window_extent(renderer)) for word in words]
    found = [name for name, box in boxes for axes in panels if axes.get_window_extent(renderer).overlaps(box)]
    found += [f"{a[0]} {b[0]}" for a, b in itertools.combinations(boxes, 2) if a[1].overlaps(b[1])]
    for axes in figure.axes:
        box = axes.get_tightbbox(renderer)
        if box is not None and (min(box.x0, box.y0) < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1):
            found.append(str(axes))
    return found


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_nothing_overlaps(study: Study) -> None:
    for name, figure in draw(make_runs(study)).items():
        assert overlaps(figure) == [], name


def test_figure_files_are_reproducible(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        for name, figure in draw(make_runs(make_study("a"))).items():
            save_png_and_svg(figure, folder / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    figures = ("cost_quality", "interaction", "learning_curves", "main_effects")
    assert names == [f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_figures_are_not_blank(tmp_path: Path) -> None:
    for name, figure in draw(make_runs(make_study("a"))).items():
        save_png_and_svg(figure, tmp_path / name)
        assert imread(tmp_path / f"{name}.png").std() > 0.02


@pytest.mark.parametrize(("name", "has_one"), [("two by two", True), ("one at a time", False), ("one cell", False)])
def test_interaction_needs_a_grid_of_two_factors(name: str, has_one: bool) -> None:
    assert ("interaction" in draw(make_runs(STUDIES[name]))) == has_one


def test_unfinished_study_is_drawn() -> None:
    without = {(place, seed): "" for place in (1, 2, 3) for seed in "012"}
    figures = draw(make_runs(make_study("a"), without=without))
    assert list(figures) == ["main_effects", "learning_curves", "cost_quality"]
    words = [text.get_text() for axes in figures["main_effects"].axes for text in axes.texts]
    assert words.count("no result") == 2


def test_main_effect_is_the_mean_over_other_factors() -> None:
    runs = make_runs(make_study("a"))
    column, found = runs.columns[0], average_levels(runs, ["text_encoder"])
    scores = [column.matrix(runs.cells[place].replicates()) for place in (0, 2)]
    point = found.points[("roberta_nano",)]
    assert point.mean == pytest.approx(np.mean(scores))
    assert point.interval == seed_interval(np.mean(scores, axis=0), column.weights(["id00"]))


def test_levels_are_averaged_over_common_combinations() -> None:
    runs = make_runs(make_study("a"), without={(3, seed): "" for seed in "012"})
    found = average_levels(runs, ["audio_encoder"])
    assert (found.used, found.total) == (1, 2)
    expected = runs.columns[0].matrix(runs.cells[0].replicates()).mean()
    assert found.points[("cnn14_nano",)].mean == pytest.approx(expected)


def test_levels_are_averaged_over_common_seeds() -> None:
    runs = make_runs(make_study("a", seeds=["0", "1", "2", "3"]), without={(2, "0"): "no memory"})
    scores = [runs.columns[0].matrix(runs.cells[place].replicates(["1", "2", "3"])) for place in (0, 2)]
    assert average_levels(runs, ["text_encoder"]).points[("roberta_nano",)].mean == pytest.approx(np.mean(scores))


def test_pareto_front_excludes_dominated_items() -> None:
    assert find_pareto_front([3, 1, 2, 4, 1], [0.5, 0.2, 0.1, 0.5, 0.3]) == [4, 0]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_cell_has_its_own_style(study: Study) -> None:
    runs = make_runs(study)
    assert len(set(choose_styles(runs).values())) == len(runs.cells)


def test_caption_describes_error_bars_and_bands() -> None:
    runs = make_runs(make_study("a"))
    assert "95 % intervals over seeds and clips" in describe_figure("main_effects", runs)
    assert "from the lowest to the highest seed" in describe_figure("learning_curves", runs)


def test_cross_validation_is_drawn_and_described() -> None:
    runs = make_runs(make_study("a", folds=["1", "2", "3"], seeds=["0"]))
    assert list(draw(runs)) == ["main_effects", "interaction", "learning_curves", "cost_quality"]
    assert "95 % intervals over folds, without" in describe_figure("main_effects", runs)
    assert "mean over seeds and folds" in describe_figure("learning_curves", runs)
    point = average_levels(runs, ["text_encoder"]).points[("roberta_nano",)]
    values = [runs.columns[0].fold_values(runs.cells[place].replicates())[0] for place in (0, 2)]
    assert point.interval == fold_interval(np.mean(values, axis=0))


@pytest.mark.parametrize("name", ["two by two", "one at a time"])
def test_chance_is_a_labelled_line(name: str) -> None:
    figures = draw(make_runs(STUDIES[name], chance=0.25))
    for figure in figures.values():
        assert overlaps(figure) == []
    labels = {key: [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes] for key, figure in figures.items()}
    marked = {key for key, found in labels.items() if any("(dashed: chance 0.250)" in label for label in found)}
    assert marked == ({"main_effects", "interaction", "cost_quality"} if name == "two by two" else {"cost_quality"})
    lines = [line for axes in figures["cost_quality"].axes for line in axes.lines]
    assert [0.25, 0.25] in [list(line.get_ydata()) for line in lines]


def test_distant_chance_is_only_named() -> None:
    runs = make_runs(make_study("a"), quality=0.9, gap=0.01, chance=0.05)
    axes = draw(runs)["main_effects"].axes[-1]
    assert axes.get_xlabel() == "text-to-audio recall@1 (chance 0.050)" and axes.get_xlim()[0] > 0.5


def test_error_bars_of_a_proportion_end_at_one() -> None:
    runs = make_runs(make_study("a"), quality=0.99, gap=0.0)
    (axes, *_) = draw(runs)["main_effects"].axes
    assert max(line.get_xdata().max() for line in axes.lines if len(line.get_xdata()) == 2) <= 1.0

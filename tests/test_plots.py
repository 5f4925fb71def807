"""Every picture is written, read back and measured; a warning about its layout is an error."""

import functools
import itertools
from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from clap.evaluation.clip_plots import plot_class_similarity, plot_log_mels, plot_similarity, wrap
from clap.evaluation.retrieved_clips import RetrievedText
from clap.evaluation.run_plots import group_quality, plot_quality_curves, plot_training_curves
from clap.plotting import PALETTE, fit_text, pick_color, running_mean

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# Machado et al. 2009, table 1, severity 1.0: linear RGB as seen by readers without one type of cones.
CONES = {
    "all": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no medium": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of sRGB
CHANCE = {"val/synthetic/zero_shot/accuracy": 0.125}
LONG_CAPTION = "a dog barks twice for $5 while rain falls on a tin roof " * 5


def to_lab(color: str, cones: str) -> np.ndarray:
    """CIELAB of a color `#rrggbb` as a reader sees it."""
    values = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(np.array(CONES[cones]) @ linear, 1e-3, 1) / TO_XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("cones", CONES)
def test_colors_of_the_palette_and_white_differ_for_every_reader(cones: str):
    colors = [to_lab(color, cones) for color in (*PALETTE, "#ffffff")]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2)) > 15  # 2.3 is barely visible


def test_first_color_is_that_of_the_first_configuration_alone():
    colors = [pick_color(index) for index in range(15)]
    assert colors == [*PALETTE, *PALETTE[1:]]


def training_history(num_steps: int) -> list[dict]:
    names = ("train/loss", "train/learning_rate", "train/logit_scale", "train/clips_per_second")
    return [{"step": step, "metrics": dict.fromkeys(names, 1.0 / (step + 1))} for step in range(num_steps)]


def validation_history(num_epochs: int) -> list[dict]:
    tasks = ("text_to_audio/recall_at_1", "audio_to_text/recall_at_10", "zero_shot/accuracy")
    return [
        {"step": epoch, "metrics": {f"val/synthetic/{task}": epoch / 10 for task in tasks}}
        for epoch in range(num_epochs)
    ]


def make_retrieved(count: int) -> list[RetrievedText]:
    return [RetrievedText(LONG_CAPTION, score=0.9, is_own=place == 0) for place in range(count)]


def draw_log_mels(count: int, path: Path, **frontend) -> None:
    plot_log_mels(
        [torch.randn(101, 16) for _ in range(count)],
        path,
        captions=[LONG_CAPTION] * count,
        retrieved=[make_retrieved(3)] * count,
        title="Own caption above, best-scoring captions below",
        **{"sample_rate": 16000, "hop_length": 160, "f_min": 50, "f_max": 8000, "mel_scale": "slaney"} | frontend,
    )


def draw_similarity(count: int, path: Path) -> None:
    plot_similarity(torch.randn(count, count), path, captions=[LONG_CAPTION] * count, clip_ids=["clip"] * count)


def assert_picture(path: Path, width: int, height: int) -> None:
    """The file is a PNG of that many pixels that is not blank."""
    picture = imread(path)
    assert picture.shape[:2] == (height, width) and picture[..., :3].std() > 0.01


def test_training_curves_have_four_panels(tmp_path: Path):
    plot_training_curves(training_history(200), tmp_path / "plots" / "training.png")
    assert_picture(tmp_path / "plots" / "training.png", width=1080, height=768)


def test_training_curves_of_the_loss_alone(tmp_path: Path):
    plot_training_curves([{"step": 1, "metrics": {"train/loss": 2.0}}], tmp_path / "training.png")
    assert_picture(tmp_path / "training.png", width=1080, height=480)


def test_training_curves_leave_out_nan(tmp_path: Path):
    history = [*training_history(100), {"step": 100, "metrics": {"train/loss": float("nan")}}]
    plot_training_curves(history, tmp_path / "training.png")
    assert_picture(tmp_path / "training.png", width=1080, height=768)


def test_recall_curves_have_a_panel_for_each_task(tmp_path: Path):
    plot_quality_curves(validation_history(5), tmp_path / "recall.png", chance=CHANCE)
    assert_picture(tmp_path / "recall.png", width=1260, height=960)


draw_quality_curves = functools.partial(plot_quality_curves, chance=CHANCE)


@pytest.mark.parametrize("draw", [plot_training_curves, draw_quality_curves])
def test_one_point_is_drawn(draw, tmp_path: Path):
    draw(training_history(1) + validation_history(1), tmp_path / "one.png")
    assert imread(tmp_path / "one.png").shape[0] >= 480


@pytest.mark.parametrize("draw", [plot_training_curves, draw_quality_curves])
def test_empty_history_says_so(draw, tmp_path: Path):
    draw([], tmp_path / "empty.png")
    assert_picture(tmp_path / "empty.png", width=720, height=300)


def test_recall_curves_take_validation_only():
    history = [{"step": 1, "metrics": {"test/clotho/text_to_audio/recall_at_1": 0.1, "train/loss": 1.0}}]
    assert group_quality(history, {}) == {}


def test_recall_curves_leave_out_ranks_and_bounds():
    prefix = "val/clotho/text_to_audio"
    metrics = {f"{prefix}/{name}": 0.1 for name in ("recall_at_1", "recall_at_1/ci_low", "median_rank")}
    assert group_quality([{"step": 1, "metrics": metrics}], {}) == {prefix: [f"{prefix}/recall_at_1"]}


def test_metrics_of_any_evaluator_have_a_panel():
    """A metric with a chance level is a share if its values are; others have axes of their own."""
    metrics = {"mine/share": 0.5, "mine/cosine": 0.5, "mine/gain": -2.0, "zero_shot/accuracy": 0.1}
    history = [{"step": 1, "metrics": {f"val/csv/{name}": value for name, value in metrics.items()}}]
    panels = group_quality(history, {"val/csv/mine/share": 0.1, "val/csv/mine/gain": 0.0})
    assert panels == {
        "val/csv/zero_shot": ["val/csv/zero_shot/accuracy"],
        "val/csv/mine": ["val/csv/mine/share"],
        "val/csv/mine/cosine": ["val/csv/mine/cosine"],
        "val/csv/mine/gain": ["val/csv/mine/gain"],
    }


def test_chance_is_a_labelled_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr("clap.evaluation.run_plots.save_png", lambda figure, path: figures.append(figure))
    plot_quality_curves(validation_history(3), tmp_path / "quality.png", chance=CHANCE)
    texts = {axes.get_title(): [text.get_text() for text in axes.get_legend().get_texts()] for axes in figures[0].axes}
    assert texts["val · synthetic · zero shot"] == ["accuracy (chance 12.5%)"]
    assert texts["val · synthetic · audio to text"] == ["recall@10"]
    panel = next(axes for axes in figures[0].axes if "zero shot" in axes.get_title())
    assert [list(line.get_ydata()) for line in panel.lines if line.get_linestyle() == "--"] == [[0.125, 0.125]]


@pytest.mark.parametrize("count", [1, 8, 64, 100])
def test_similarity_is_drawn(count: int, tmp_path: Path):
    draw_similarity(count, tmp_path / "similarity.png")
    assert_picture(tmp_path / "similarity.png", width=1200, height=1032)


def test_similarity_without_clips_says_so(tmp_path: Path):
    draw_similarity(0, tmp_path / "similarity.png")
    assert_picture(tmp_path / "similarity.png", width=720, height=300)


def test_similarity_needs_one_caption_a_clip(tmp_path: Path):
    with pytest.raises(ValueError, match="2 clip_ids and 3 captions"):
        plot_similarity(torch.zeros(2, 3), tmp_path / "similarity.png", captions=["a"] * 3, clip_ids=["b"] * 2)


@pytest.mark.parametrize(("count", "num_classes", "width"), [(1, 2, 1200), (20, 10, 1200), (64, 90, 1620)])
def test_clips_are_compared_with_classes(count: int, num_classes: int, width: int, tmp_path: Path):
    names = [f"class $ {i}" for i in range(num_classes)]
    labels = [tuple(dict.fromkeys((names[row % num_classes], names[-1 - row % num_classes]))) for row in range(count)]
    path = tmp_path / "similarity.png"
    similarity = torch.randn(count, num_classes)
    plot_class_similarity(similarity, path, class_names=names, labels=labels, num_clips=99)
    assert_picture(path, width=width, height=1032)


def test_clips_without_one_row_each_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"similarity is \(2, 3\) with 1 labels and 3 class_names"):
        plot_class_similarity(
            torch.zeros(2, 3), tmp_path / "a.png", class_names=["a", "b", "c"], labels=[("a",)], num_clips=2
        )


@pytest.mark.parametrize(("count", "width", "height"), [(1, 660, 648), (4, 1248, 1248), (5, 1836, 1248)])
def test_log_mels_fill_a_grid(count: int, width: int, height: int, tmp_path: Path):
    draw_log_mels(count, tmp_path / "log_mels.png")
    assert_picture(tmp_path / "log_mels.png", width=width, height=height)


def test_log_mels_without_clips_say_so(tmp_path: Path):
    draw_log_mels(0, tmp_path / "log_mels.png")
    assert_picture(tmp_path / "log_mels.png", width=720, height=300)


def test_htk_scale_moves_the_frequencies(tmp_path: Path):
    for mel_scale in ("slaney", "htk"):
        torch.manual_seed(0)
        draw_log_mels(1, tmp_path / f"{mel_scale}.png", mel_scale=mel_scale)
    assert not np.array_equal(imread(tmp_path / "slaney.png"), imread(tmp_path / "htk.png"))


def test_pictures_leave_pyplot_alone(tmp_path: Path):
    draw_log_mels(1, tmp_path / "log_mels.png")
    assert matplotlib.pyplot.get_fignums() == []


def test_running_mean_is_centred():
    np.testing.assert_allclose(running_mean(np.array([0.0, 3.0, 6.0, 0.0]), reach=1), [1.5, 3.0, 3.0, 3.0])


def test_long_caption_is_wrapped_on_two_lines():
    assert wrap(LONG_CAPTION).count("\n") == 1


def test_short_text_is_not_cut():
    assert fit_text("rain", 4) == "rain"


def test_dollar_is_no_formula():
    assert fit_text("$5", 9) == r"\$5"

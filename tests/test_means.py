"""Means of a sweep over seeds and folds, from its job folders."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from study_store import LEADING, add_job, make_results

from clap.study.job import read_jobs
from clap.study.means import Means
from clap.study.statistics import fold_interval, seed_interval
from clap.study.table import format_interval

GROUPS = ("audio_encoder",)
RECALL = "test/x/text_to_audio/recall_at_1"


def make_means(sweep: Path, *swept: str, metrics: tuple[str, ...] = (RECALL,)) -> Means:
    return Means(read_jobs(sweep), metrics=metrics, swept=["audio_encoder", *swept], groups=GROUPS)


def add_seeds(sweep: Path, encoder: str, *values: float) -> None:
    for seed, value in enumerate(values):
        add_job(sweep, {"audio_encoder": encoder, "seed": str(seed)}, {RECALL: value})


def add_folds(sweep: Path, encoder: str, quality: float, *, folds: str = "1234", chance: float | None = None) -> list:
    """Jobs of a cross-validation; their values of the leading metric."""
    values = []
    for fold in folds:
        results = make_results(quality, seed=int(fold), fold=fold, chance=chance)
        add_job(sweep, {"audio_encoder": encoder, "dataset.test_fold": fold}, results=results)
        values.append(results["retrieval"].metrics[LEADING])
    return values


def read_line(means: Means, start: str) -> list[str]:
    (line,) = (line for line in means.markdown().splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_configurations_are_sorted_by_the_mean_over_seeds(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.1, 0.9, 0.2)
    add_seeds(tmp_path, "htsat", 0.5, 0.5, 0.8)
    means = make_means(tmp_path, "seed")
    assert [row.name for row in means.rows] == ["htsat", "cnn14"]
    assert means.summary() == "Best mean: htsat (x text_to_audio recall_at_1 0.600)."
    estimate = means.rows[1].estimate(RECALL)
    assert estimate.mean == pytest.approx(0.4) and estimate.deviation == pytest.approx(np.std([0.1, 0.9, 0.2], ddof=1))
    assert estimate.interval == seed_interval([0.1, 0.9, 0.2])
    assert read_line(means, "cnn14")[:4] == ["cnn14", "3", "0.400", "0.436"]


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.25, 0.5)
    assert read_line(make_means(tmp_path, "seed"), "cnn14")[1:5] == ["2", "0.375", "0.177", "–"]


def test_interval_of_seeds_is_that_of_a_study(tmp_path: Path) -> None:
    matrix = []
    for seed in range(3):
        results = make_results(0.5, seed=seed)
        add_job(tmp_path, {"seed": str(seed)}, results=results)
        matrix.append(results["retrieval"].scores[LEADING].values.reshape(20, 3).mean(axis=1))
    means = make_means(tmp_path, "seed", metrics=(LEADING,))
    assert means.rows[0].name == "all jobs"
    found, expected = means.rows[0].estimate(LEADING).interval, seed_interval(matrix)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_folds_are_one_number(tmp_path: Path) -> None:
    values = add_folds(tmp_path, "cnn14", 0.5)
    means = make_means(tmp_path, "dataset.test_fold", metrics=(LEADING,))
    estimate = means.rows[0].estimate(LEADING)
    assert estimate.mean == pytest.approx(np.mean(values)) and estimate.deviation == pytest.approx(
        np.std(values, ddof=1)
    )
    assert estimate.interval == fold_interval(values)
    assert read_line(means, "cnn14")[1:3] == ["1", "4"]
    assert "over folds from three folds on (Nadeau & Bengio 2003)" in means.markdown()


def test_configuration_without_a_fold_has_no_number(tmp_path: Path) -> None:
    add_folds(tmp_path, "htsat", 0.2)
    add_folds(tmp_path, "cnn14", 0.9, folds="124")
    add_job(tmp_path, {"audio_encoder": "cnn14", "dataset.test_fold": "3"}, status="failed", error="no memory")
    means = make_means(tmp_path, "dataset.test_fold", metrics=(LEADING,))
    assert [row.name for row in means.rows] == ["htsat", "cnn14"]
    assert read_line(means, "cnn14")[1:4] == ["0", "0", "–"]
    assert means.rows[1].gaps == "seed 0, fold 3 no memory"


def test_pruned_job_is_no_result(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.5)
    add_job(tmp_path, {"audio_encoder": "cnn14", "seed": "1"}, {RECALL: 0.9}, status="pruned")
    means = make_means(tmp_path, "seed")
    assert means.rows[0].estimate(RECALL).mean == 0.5 and means.rows[0].gaps.startswith("seed 1 ")


def test_chance_is_shown_and_a_sweep_at_chance_says_so(tmp_path: Path) -> None:
    add_folds(tmp_path, "cnn14", 0.1, chance=0.1)
    means = make_means(tmp_path, "dataset.test_fold", metrics=(LEADING,))
    assert read_line(means, "chance")[3] == "0.100"
    assert "The configuration is not above chance in text-to-audio recall@1" in means.markdown()
    add_folds(tmp_path, "htsat", 0.9, chance=0.1)
    assert "above chance" not in make_means(tmp_path, "dataset.test_fold", metrics=(LEADING,)).markdown()


def test_every_metric_has_its_interval_and_its_warning(tmp_path: Path) -> None:
    other = "test/synthetic/audio_to_text/recall_at_1"
    add_folds(tmp_path, "cnn14", 0.1, chance=0.1)
    means = make_means(tmp_path, "dataset.test_fold", metrics=(other, LEADING))
    estimate = means.rows[0].estimate(LEADING)
    assert read_line(means, "cnn14")[6] == f"{estimate.mean:.3f} ({format_interval(estimate.interval)})"
    assert means.markdown().count("is not above chance in") == 1  # of the one with a chance level
    assert "is not above chance in text-to-audio recall@1" in means.markdown()


def test_best_configuration_gives_the_metrics_of_the_parent_run(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.2, 0.3, 0.4)
    add_seeds(tmp_path, "htsat", 0.1, 0.1, 0.1)
    found = make_means(tmp_path, "seed").best()
    assert found[f"best_mean/{RECALL}"] == pytest.approx(0.3)
    assert set(found) == {f"best_mean/{RECALL}{ending}" for ending in ("", "/sd", "/ci_low", "/ci_high")}


def test_different_protocols_of_one_configuration_have_no_mean(tmp_path: Path) -> None:
    for seed in range(3):
        results = make_results(0.5, seed=seed, protocol={"windows": "mean"} if seed else None)
        add_job(tmp_path, {"audio_encoder": "cnn14", "seed": str(seed)}, results=results)
    row = make_means(tmp_path, "seed", metrics=(LEADING,)).rows[0]
    assert row.estimate(LEADING) is None and "different protocols are not comparable" in row.gaps


def test_lost_evaluation_leaves_a_configuration_without_a_number(tmp_path: Path) -> None:
    job = add_job(tmp_path, {"audio_encoder": "cnn14", "seed": "0"}, results=make_results(0.5, seed=0))
    (path,) = (job.folder / "evaluation").glob("*.npz")
    path.unlink()
    row = make_means(tmp_path, "seed", metrics=(LEADING,)).rows[0]
    assert row.estimate(LEADING) is None and path.name in row.gaps


def test_sweep_without_seeds_and_folds_has_no_means(tmp_path: Path) -> None:
    add_job(tmp_path, {"audio_encoder": "cnn14"}, {RECALL: 0.5})
    means = make_means(tmp_path)
    assert (means.rows, means.markdown(), means.best()) == ([], "", {})


def test_csv_has_every_number(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.2, 0.3, 0.4)
    (record,) = csv.DictReader(io.StringIO(make_means(tmp_path, "seed").csv()))
    assert (record["configuration"], record["seeds"], float(record["minutes"])) == ("cnn14", "3", 1.5)
    assert float(record[RECALL]) == pytest.approx(0.3) and float(record[f"{RECALL}/ci_high"]) > 0.4


def test_number_that_is_not_finite_has_no_mean(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.1, float("nan"), 0.3)
    add_seeds(tmp_path, "htsat", 0.1, 0.2, 0.3)
    means = make_means(tmp_path, "seed")
    assert [row.name for row in means.rows] == ["htsat", "cnn14"] and means.rows[1].estimate(RECALL) is None
    assert "is nan in cnn14-s1" in means.rows[1].gaps


def test_metric_that_a_job_lacks_is_named(tmp_path: Path) -> None:
    add_seeds(tmp_path, "cnn14", 0.1, 0.2)
    (tmp_path / "folder-cnn14-s0" / "metrics.json").unlink()
    assert make_means(tmp_path, "seed").rows[0].gaps == f"{RECALL} is not in metrics.json of cnn14-s0"


@pytest.mark.parametrize("kept", [0, 0.5])
def test_damaged_evaluation_is_named(tmp_path: Path, kept: float) -> None:
    for seed in "01":
        add_job(tmp_path, {"seed": seed}, results=make_results(0.5, seed=int(seed)))
    (file,) = (tmp_path / "folder-s1").glob("evaluation/*.npz")
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    (row,) = make_means(tmp_path, "seed", metrics=(LEADING,)).rows
    assert row.estimate(LEADING) is None and "is truncated or damaged" in row.gaps


def test_forced_override_is_a_level(tmp_path: Path) -> None:
    for rate, value in (("0.1", 0.25), ("0.2", 0.5)):
        for seed in "01":
            add_job(tmp_path, {"++optimizer.lr": rate, "seed": seed}, {RECALL: value})
    means = make_means(tmp_path, "optimizer.lr", "seed")
    assert {row.name: row.estimate(RECALL).mean for row in means.rows} == {"lr=0.2": 0.5, "lr=0.1": 0.25}


def test_configurations_of_different_protocols_are_marked(tmp_path: Path) -> None:
    add_job(tmp_path, {"audio_encoder": "cnn14", "seed": "0"}, results=make_results(0.5, seed=0, chance=0.05))
    changed = make_results(0.5, seed=0, protocol={"definition": 2}, chance=0.1)
    add_job(tmp_path, {"audio_encoder": "htsat", "seed": "0"}, results=changed)
    means = make_means(tmp_path, "seed", metrics=(LEADING,))
    assert "differ in the protocol of synthetic text_to_audio recall_at_1, and do not compare" in means.markdown()
    assert read_line(means, "chance")[2] == "0.050 to 0.100"
    assert means.best()[f"chance/{LEADING}"] == means.rows[0].chance(LEADING)

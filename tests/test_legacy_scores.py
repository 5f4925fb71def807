"""Files that were written before evaluators declared their scores are still reported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from study_store import LEADING, make_results

from clap.evaluation.results import Evaluation, read_results, write_results
from clap.study.scores import RunScores, make_column


def remove_declared_arrays(path: Path) -> None:
    """Make a file as it was written before evaluators declared their scores."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    kept = {name: values for name, values in arrays.items() if name != "metrics" and "/" not in name}
    np.savez_compressed(path, **kept)


@pytest.fixture
def legacy_folder(tmp_path: Path) -> Callable[[Evaluation, str], Path]:
    def write(result: Evaluation, name: str) -> Path:
        write_results(tmp_path, {name: result})
        (path,) = tmp_path.glob("*.npz")
        remove_declared_arrays(path)
        return tmp_path

    return write


def test_scores_of_an_older_retrieval_file_are_the_declared_ones(legacy_folder: Callable) -> None:
    result = make_results(0.5, seed=0)["retrieval"]
    (found,) = read_results(legacy_folder(result, "retrieval"))
    assert set(found.metrics) == set(result.metrics)
    assert found.scores.keys() == result.scores.keys() and len(found.scores) == 12
    for metric, scores in result.scores.items():
        assert_array_equal(found.scores[metric].values, scores.values)
        assert_array_equal(found.scores[metric].clips, scores.clips)


def test_scores_of_an_older_zero_shot_file_are_its_hits(legacy_folder: Callable) -> None:
    hits = np.array([True, False, True])
    metrics = {"test/esc50/zero_shot/accuracy": 2 / 3, "test/esc50/zero_shot/log_likelihood": -1.5}
    protocol = {"split": "test", "dataset": "esc50"}
    result = Evaluation(metrics, ["a", "b", "c"], per_query={"hit": hits}, protocol=protocol)
    (found,) = read_results(legacy_folder(result, "zero_shot"))
    assert found.metrics == tuple(metrics)
    assert list(found.scores) == ["test/esc50/zero_shot/accuracy"]
    assert_array_equal(found.scores["test/esc50/zero_shot/accuracy"].values, [1, 0, 1])


def test_older_file_of_an_unknown_evaluator_has_no_scores(legacy_folder: Callable) -> None:
    (found,) = read_results(
        legacy_folder(Evaluation({}, ["a"], protocol={"split": "test", "dataset": "tones"}), "probe")
    )
    assert found.metrics == () and not found.scores


def test_older_and_newer_runs_share_a_column(legacy_folder: Callable, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = make_results(0.5, seed=0)["retrieval"]
    folders = {"old": legacy_folder(result, "retrieval"), "new": tmp_path_factory.mktemp("new")}
    write_results(folders["new"], {"retrieval": result})
    runs = {name: RunScores(name, result.metrics[LEADING], read_results(folder)) for name, folder in folders.items()}
    matrix = make_column(LEADING, runs).matrix([["old"], ["new"]])
    assert_array_equal(matrix[0], matrix[1])
    assert matrix.shape == (2, 20)

"""Evaluations are written to a run folder and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from study_store import make_results

from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation, label_metric, merge_metrics, read_results, write_results

METRIC = "test/tones/probe/accuracy"
PROTOCOL = {"split": "test", "dataset": "tones", "hash": "0"}


def make_evaluation(**changes) -> Evaluation:
    values = {
        "metrics": {METRIC: 0.5, "test/tones/probe/margin": 3.0},
        "clip_ids": ["a", "b", "c"],
        "scores": {METRIC: QueryScores([1, 0], [2, 0])},
        "per_query": {"predicted": np.array([1, 2, 3])},
        "protocol": PROTOCOL,
    }
    return Evaluation(**values | changes)


def test_evaluation_is_read_back(tmp_path: Path) -> None:
    write_results(tmp_path, {"probe": make_evaluation()})
    (found,) = read_results(tmp_path)
    assert found.metrics == (METRIC, "test/tones/probe/margin")
    assert found.clip_ids.tolist() == ["a", "b", "c"]
    assert found.protocol == PROTOCOL
    assert list(found.scores) == [METRIC]
    assert_array_equal(found.scores[METRIC].values, [1, 0])
    assert_array_equal(found.scores[METRIC].clips, [2, 0])


def test_file_has_the_declared_arrays_and_those_of_the_evaluator(tmp_path: Path) -> None:
    write_results(tmp_path, {"probe": make_evaluation()})
    with np.load(tmp_path / "test-tones-probe.npz", allow_pickle=False) as stored:
        assert stored.files == ["clip_id", "predicted", "metrics", f"scores/{METRIC}", f"clips/{METRIC}"]
        assert stored[f"scores/{METRIC}"].dtype == np.float64


def test_protocols_of_other_splits_are_kept(tmp_path: Path) -> None:
    for split in ("val", "test"):
        write_results(tmp_path, {"probe": make_evaluation(protocol=PROTOCOL | {"split": split})})
    assert set(json.loads((tmp_path / "protocol.json").read_text())) == {"val-tones-probe", "test-tones-probe"}
    assert len(read_results(tmp_path)) == 2


def test_metrics_of_all_evaluators_are_merged() -> None:
    retrieval = make_results(0.5, seed=0)["retrieval"]
    merged = merge_metrics({"probe": make_evaluation(), "retrieval": retrieval})
    assert merged == {METRIC: 0.5, "test/tones/probe/margin": 3.0, **retrieval.metrics}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            {METRIC: QueryScores([1, 1], [0, 1])},
            "scores of test/tones/probe/accuracy have the mean 1.000000, the metric",
        ),
        ({"test/tones/probe/recall": QueryScores([1, 1], [0, 1])}, "the metric is None; give scores to metrics that"),
        ({METRIC: QueryScores([1, 0], [0, 3])}, "of clips 0 to 3; clip_ids has the rows 0 to 2"),
    ],
)
def test_scores_of_another_metric_or_other_clips_are_refused(scores: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_evaluation(scores=scores)


def test_metrics_are_named_in_a_readers_words() -> None:
    assert label_metric("test/synthetic/text_to_audio/recall_at_1") == "text-to-audio recall@1"
    assert label_metric("test/clotho/audio_to_text/mean_average_precision_at_10") == "audio-to-text mAP@10"
    assert label_metric("test/esc50/zero_shot/accuracy") == "zero-shot accuracy"
    assert label_metric("val/esc50/linear_probe/shots_4/accuracy") == "linear-probe shots-4 accuracy"
    assert label_metric("cost/seconds") == "cost seconds"

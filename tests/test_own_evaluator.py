"""A new evaluator is one file and one yaml: a nearest-centroid probe in a copy of the repository, as a user adds it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import TINY, make_tone
from script import ROOT, run_script

from clap.evaluation.results import read_results
from clap.evaluation.run_plots import group_quality
from clap.run_folder import HISTORY, read_chance, read_history
from clap.study.job import Job
from clap.study.leaderboard import Leaderboard
from clap.study.scores import RunScores, make_column
from clap.tracking.store import MlflowClient

CENTROID_PY = '''
"""Nearest-centroid classification: a clip gets the class whose training clips have the nearest mean embedding."""

from pathlib import Path

import torch

from clap.evaluation.class_report import write_class_report
from clap.evaluation.embedded_split import Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.metrics import accuracy, predict_classes
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation
from clap.model import Clap


class Centroid(Evaluator):
    metric_names = ("centroid/accuracy",)
    needs = ("train",)

    def __call__(self, clap: Clap, splits: Splits) -> Evaluation:
        train, evaluated = splits["train"], splits.evaluated
        labels = [clip.label for clip in train.clips]
        names = sorted(set(labels))
        rows = torch.tensor([names.index(label) for label in labels])
        centroids = torch.stack([train.audio_embedding[rows == row].mean(dim=0) for row in range(len(names))])
        targets = torch.tensor([names.index(clip.label) for clip in evaluated.clips])
        predicted = predict_classes(-torch.cdist(evaluated.audio_embedding, centroids), targets)
        hits = predicted == targets
        return Evaluation(
            {"centroid/accuracy": accuracy(hits)},
            clip_ids=[clip.id for clip in evaluated.clips],
            scores={"centroid/accuracy": QueryScores(hits, torch.arange(len(hits)))},
            per_query={"label": targets.numpy(), "predicted": predicted.numpy()},
            protocol={
                "accuracy": "share of clips whose own class has the nearest mean of training clips",
                "class_names": names,
            },
            chance={"centroid/accuracy": 1 / len(names)},
        )

    def write_report(self, result: Evaluation, folder: Path) -> None:
        targets, predicted = result.per_query["label"], result.per_query["predicted"]
        write_class_report(folder, result.protocol["class_names"], targets, predicted, "Nearest centroid")
'''
CENTROID_YAML = """\
# @package evaluation.centroid
# Nearest-centroid classification on the labels of the training split.
_target_: clap.evaluation.centroid.Centroid
"""
METRIC = "test/csv/centroid/accuracy"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the new evaluator, and thirty labelled clips in its folder data."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("clap", "conf"):
        shutil.copytree(ROOT / name, folder / name)  # with __pycache__, which saves seconds
    for name in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "clap" / "evaluation" / "centroid.py").write_text(CENTROID_PY)
    (folder / "conf" / "evaluation" / "centroid.yaml").write_text(CENTROID_YAML)
    (folder / "data").mkdir()
    lines = ["path,caption,label,split"]
    for number in range(30):
        is_high = number % 2
        soundfile.write(folder / "data" / f"{number}.wav", make_tone(300 + 3000 * is_high, 1.0, seed=number), 16_000)
        split = "test" if number < 8 else "val" if number < 14 else "train"
        lines.append(f"{number}.wav,{'a high' if is_high else 'a low'} tone,{'high' if is_high else 'low'},{split}")
    (folder / "data" / "clips.csv").write_text("\n".join(lines))
    return folder


def run(checkout: Path, script: str, *arguments: str) -> None:
    result = run_script(checkout / script, *arguments, "evaluation=[retrieval,centroid]")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def trained(checkout: Path, empty_store: Path) -> Path:
    """A run folder, whose MLflow store is next to it."""
    (checkout / "outputs").mkdir()
    shutil.copy(empty_store, checkout / "outputs" / "mlflow.db")
    data = ["dataset=csv", "dataset.root=data", "dataset.metadata=data/clips.csv", "dataset.num_workers=0"]
    options = ["trainer.max_epochs=1", "dataset.batch_size=8", "hydra.run.dir=outputs/run"]
    run(checkout, "train.py", *TINY, *data, *options)
    return checkout / "outputs" / "run"


def test_training_reports_the_metric_of_validation_and_test(trained: Path):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"val/csv/centroid/accuracy", METRIC, "test/csv/text_to_audio/recall_at_1"} <= metrics.keys()
    assert metrics[METRIC] == 1.0  # two tones three octaves apart
    assert "centroid accuracy 1.000" in (trained / "train.log").read_text()  # in the line of the validation


def test_protocol_names_the_training_split(trained: Path):
    protocol = json.loads((trained / "evaluation" / "protocol.json").read_text())["test-csv-centroid"]
    assert protocol["other_splits"]["train"]["clips"] == "16 of 16"
    assert protocol["clips"] == "8 of 8"


def test_log_plot_and_leaderboard_have_the_metric_and_its_chance(trained: Path):
    assert read_chance(trained)[METRIC] == 0.5
    lines = (trained / "train.log").read_text().splitlines()
    assert any("centroid accuracy" in line and "(chance 0.500)" in line for line in lines)  # of the validation
    assert any(METRIC in line and "1.0000  0.5000" in line for line in lines)  # of the table at the end
    panels = group_quality(read_history(trained / HISTORY), read_chance(trained))
    assert panels["val/csv/centroid"] == ["val/csv/centroid/accuracy"]
    board = Leaderboard([Job(trained, "first", "finished")])
    assert METRIC in board.metrics and board.chance[METRIC] == [0.5] and "csv centroid accuracy" in board.markdown()


def test_mlflow_has_the_metric_and_the_report(checkout: Path, trained: Path):
    client = MlflowClient(f"sqlite:///{checkout / 'outputs' / 'mlflow.db'}")
    run = client.get_run(json.loads((trained / "mlflow.json").read_text())["run_id"])
    assert run.data.metrics[METRIC] == 1.0
    note = re.sub(" +", " ", run.data.tags["mlflow.note.content"])
    assert f"| {METRIC} | 1.0000 | 0.5000 |" in note
    files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation/test-csv-centroid")}
    assert files == {
        f"evaluation/test-csv-centroid/{name}" for name in ("confusion.png", "confusion.csv", "classes.csv")
    }


def test_study_has_a_column_of_its_scores(trained: Path):
    value = json.loads((trained / "metrics.json").read_text())[METRIC]
    column = make_column(METRIC, {"id": RunScores("job", value, read_results(trained / "evaluation"))})
    np.testing.assert_array_equal(column.matrix([["id"]]), np.ones((1, 8)))
    assert column.label == "centroid accuracy"
    assert column.protocol["evaluator"] == "centroid"


def test_evaluate_gives_the_same_number_and_scores(checkout: Path, trained: Path):
    arguments = [f"checkpoint={trained / 'checkpoints' / 'best'}", "hydra.run.dir=outputs/again", "tracking.uri=null"]
    run(checkout, "evaluate.py", *arguments)
    again = checkout / "outputs" / "again"
    metrics, found = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, again))
    assert found == {name: value for name, value in metrics.items() if name.startswith("test/")}
    protocols = [json.loads((folder / "evaluation" / "protocol.json").read_text()) for folder in (trained, again)]
    assert protocols[0]["test-csv-centroid"] == protocols[1]["test-csv-centroid"]

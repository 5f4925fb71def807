"""Other datasets that are evaluated while training: their metrics, the monitor, resuming."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from clap.commands.synthesize import synthesize
from clap.config.compose import compose_config
from clap.evaluation.evaluation_set import EvaluationSet
from clap.evaluation.linear_probe import LinearProbe
from clap.study.check_run import check_run, open_evaluators

ACCURACY = "val/esc50/zero_shot/accuracy"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A config with twenty labelled clips in the layout of ESC-50 as evaluation dataset."""
    root = tmp_path_factory.mktemp("data") / "ESC-50"
    synthesize(root, layout="esc50", num_clips=20, sample_rate=8_000, min_duration=3.0, max_duration=3.0)
    lines = [f"evaluation_datasets={{esc50: {{root: {root}}}}}", "dataset.num_workers=0"]
    return compose_config(lines)


@pytest.fixture
def make(config: dict, make_trainer: Callable, tiny_clap: Callable) -> Callable:
    """`make(...)` -> `make_trainer(...)` with the evaluation dataset."""

    def make(epochs: int = 1, **options):
        own, others = open_evaluators(config, {"train": ["synthetic"], "val": ["synthetic"]})
        sets = {name: other.open(**tiny_clap().input_format) for name, other in others.items()}
        return make_trainer(epochs, evaluators=own | sets, **options)

    return make


def test_metrics_of_each_validation_and_of_the_test_split_are_recorded(make: Callable, tmp_path: Path):
    trainer = make()
    metrics = trainer.train_and_eval(tmp_path)
    assert trainer.validation.monitors == ["val/synthetic/text_to_audio/mean_average_precision_at_10"]
    assert {ACCURACY, "test/esc50/zero_shot/accuracy", "test/synthetic/audio_to_text/recall_at_1"} <= metrics.keys()
    protocols = json.loads((tmp_path / "evaluation/protocol.json").read_text())
    assert protocols["test-esc50-zero_shot"]["clips"] == "4 of 4" and protocols["val-esc50-zero_shot"]["chance"]
    assert (tmp_path / "evaluation/test-esc50-zero_shot.npz").is_file()
    assert (tmp_path / "evaluation/test-esc50-zero_shot/confusion.csv").is_file()


def test_weights_do_not_depend_on_it(make: Callable, make_trainer: Callable, tmp_path: Path):
    files = []
    for name, trainer in {"with": make(), "without": make_trainer(1)}.items():
        trainer.fit(tmp_path / name)
        files.append((tmp_path / name / "checkpoints/last/model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_its_metric_can_be_the_monitor(make: Callable, tmp_path: Path):
    trainer = make(monitor=ACCURACY)
    trainer.fit(tmp_path)
    assert trainer.validation.best_metric == trainer.validation.best_metrics[ACCURACY]
    with pytest.raises(ValueError, match=f"trainer.monitor=val/esc50/x is not one of .*{ACCURACY}"):
        make(monitor="val/esc50/x")


def test_it_validates_a_dataset_without_validation_split(make: Callable, tmp_path: Path):
    own = make()
    loaders = (own.train_loader, None, None)
    evaluators = own.validation.others
    trainer = type(own)(*loaders, own.clap, own.optimizer, own.criterion, 1, evaluators=evaluators)
    metrics = trainer.train_and_eval(tmp_path)
    assert trainer.validation.monitors == [ACCURACY] and set(metrics) == {
        f"{split}/esc50/zero_shot/{name}" for split in ("val", "test") for name in ("accuracy", "log_likelihood")
    }


def test_resumed_run_must_have_it_again(make: Callable, make_trainer: Callable, tmp_path: Path):
    make().fit(tmp_path)
    last = tmp_path / "checkpoints/last"
    make(2).resume(last)
    with pytest.raises(ValueError, match="the esc50 test split had 4 clips and has 0"):
        make_trainer(2).resume(last)


def test_two_processes_have_the_metrics_of_one(make: Callable):
    def evaluate(rank: int) -> dict[str, float]:
        return make().validation.evaluate("val")["esc50/zero_shot"].metrics

    one = make().validation.evaluate("val")["esc50/zero_shot"].metrics
    for found in run_ranks(evaluate):
        torch.testing.assert_close(found, one)


def test_evaluator_that_cannot_run_on_it_is_refused(make_trainer: Callable):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="evaluation probe needs the train split of synthetic, which has no clips"):
        EvaluationSet({"val": trainer.val_loader}, {"probe": LinearProbe()})


def test_config_names_its_metrics(config: dict):
    check_run(
        config | {"trainer": config["trainer"] | {"monitor": ACCURACY}, "study": {"metrics": [f"test{ACCURACY[3:]}"]}}
    )
    with pytest.raises(ValueError, match="trainer.monitor=val/esc50/accuracy is not one of"):
        check_run(config | {"trainer": config["trainer"] | {"monitor": "val/esc50/accuracy"}})

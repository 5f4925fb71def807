"""Options of the trainer are checked, and the yaml lists all of them."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from clap.training.trainer_settings import TrainerSettings

CONFIG = Path(__file__).resolve().parents[1] / "conf" / "config.yaml"


def test_yaml_has_every_option_with_its_default():
    options = yaml.safe_load(CONFIG.read_text())["trainer"]
    assert options == asdict(TrainerSettings(max_epochs=options["max_epochs"]))


@pytest.mark.parametrize("option", ["max_epochs", "max_steps", "patience", "eval_every", "log_every", "save_every"])
def test_options_below_one_are_refused(option: str):
    with pytest.raises(ValueError, match=rf"trainer.{option}=0 must be at least 1"):
        TrainerSettings(**{option: 0})


@pytest.mark.parametrize("norm", [0, -1.0, float("nan")])
def test_gradient_norm_that_stops_learning_is_refused(norm: float):
    with pytest.raises(ValueError, match=r"trainer.max_grad_norm=.* must be above 0, or null"):
        TrainerSettings(max_grad_norm=norm)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="trainer.precision='fp8' is not one of fp32, bf16, fp16"):
        TrainerSettings(precision="fp8")

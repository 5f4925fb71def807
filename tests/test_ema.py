"""The moving average of the weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from test_state import interrupt_after
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clap import ClapTrainer
from clap.checkpoint import read_weights
from clap.model import Clap
from clap.training.ema import WeightAverage, name_average
from clap.training.sharding import distribute_model
from clap.training.state import read_trainer_state
from clap.training.trainer_settings import TrainerSettings


def test_average_equals_that_of_torch():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    own, other = WeightAverage(model, 0.9), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        nn.init.normal_(model.weight)
        own.update()
        other.update_parameters(model)
    weight = model.weight.clone()
    with own.applied():
        torch.testing.assert_close(model.weight, other.module.weight)
        assert not torch.equal(model.weight, weight)
    assert torch.equal(model.weight, weight)


def test_model_has_its_weights_again_after_an_error():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    average.update()
    nn.init.ones_(model.weight)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert (model.weight == 1).all()


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(ValueError, match="trainer.ema_decay=.* must be between 0 and 1"):
        TrainerSettings(ema_decay=decay)


def test_average_is_saved_and_evaluated_next_to_the_model(make_trainer: Callable, tmp_path: Path):
    plain, trainer = make_trainer(), make_trainer(ema_decay=0.5)
    logged: dict[str, float] = {}
    trainer.log_metrics = logged.update
    alone = plain.train_and_eval(tmp_path / "plain")
    metrics = trainer.train_and_eval(tmp_path / "ema")
    assert {name: value for name, value in metrics.items() if "_ema" not in name} == alone  # nothing else changes
    assert {name for name in metrics if "_ema" in name} == set(
        name_average({name: 0 for name in alone if name.startswith("test/")})
    )
    assert "val_ema/synthetic/text_to_audio/recall_at_1" in logged
    assert json.loads((tmp_path / "ema" / "metrics.json").read_text()) == metrics
    folders = [tmp_path / name / "checkpoints" for name in ("plain", "ema")]
    last = [read_weights(folder / "last") for folder in folders]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
    average = Clap.from_ckpt(folders[1] / "ema").state_dict()
    assert any(not torch.equal(value, last[0][name]) for name, value in average.items())
    running = {name: value for name, value in average.items() if "running" in name}
    assert running and all(torch.equal(value, last[0][name]) for name, value in running.items())
    assert torch.equal(average["logit_scale"], trainer.ema.averages["logit_scale"])


def test_average_is_resumed_exactly(make_trainer: Callable, tmp_path: Path):
    options = {"epochs": 3, "ema_decay": 0.9}
    whole, stopped, resumed = (make_trainer(**options) for _ in range(3))
    whole.fit(tmp_path / "whole")
    stopped.train_step = interrupt_after(stopped, 3)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.fit(tmp_path / "other")
    for name in ("ema", "last"):
        weights = (tmp_path / run / "checkpoints" / name / "model.safetensors" for run in ("whole", "other"))
        assert len({path.read_bytes() for path in weights}) == 1


def test_average_without_validation_is_saved(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1, ema_decay=0.5)
    trainer.validation.sets[0].loaders.pop("val")
    trainer.fit(tmp_path)
    assert torch.equal(read_weights(tmp_path / "checkpoints/ema")["logit_scale"], trainer.ema.averages["logit_scale"])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_save_one_average_of_the_whole_weights(make_trainer: Callable, tmp_path: Path, parallel: str):
    def train(rank: int) -> None:
        trainer = make_trainer()
        settings = TrainerSettings(max_epochs=1, max_steps=2, ema_decay=0.5, parallel=parallel)
        distribute_model(trainer.clap, settings)
        optimizer, loaders = SGD(trainer.clap.parameters(), lr=1e-2), trainer.loaders.values()
        ClapTrainer(*loaders, trainer.clap, optimizer, trainer.criterion, settings=settings).fit(tmp_path)

    assert run_ranks(train) == [None, None]
    average, last = (read_weights(tmp_path / "checkpoints" / name) for name in ("ema", "last"))
    state = read_trainer_state(tmp_path / "checkpoints" / "last")["ema"]
    for name, value in state.items():
        assert torch.equal(value, average[name]) and value.shape == last[name].shape
    name = "text_encoder.transformer.ln_f.bias"
    assert 0 < (average[name] - last[name]).abs().max() < last[name].abs().max()

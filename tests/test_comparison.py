"""What a run that resumes may change: settings, data and optimizer are compared with its first part."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ramps import make_dataset
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from clap.config.augmentation_settings import AugmentationSettings
from clap.corpus import Clip
from clap.training.comparison import (
    check_data,
    check_optimizer,
    check_settings,
    digest_dataset,
    load_optimizer,
    read_settings,
)
from clap.training.trainer_settings import TrainerSettings

LAST = Path("run/checkpoints/last")
CONFIG = {
    "seed": 0,
    "device": "cpu",
    "optimizer": {"lr": 0.1},
    "dataset": {
        "_target_": "clap.dataset.csv.CSV",
        "root": "a",
        "metadata": "a.csv",
        "num_workers": 2,
        "batch_size": 8,
    },
}


def make_settings(config: dict = CONFIG, *, batch_size: int = 8, gain: float = 0.0, **options) -> dict:
    """The settings of a trainer; of an empty config those that it knows."""
    settings = TrainerSettings(**options)
    loader = SimpleNamespace(dataset=SimpleNamespace(seed=0), batch_sampler=SimpleNamespace(batch_size=batch_size))
    config = {**config, "trainer": vars(settings)} if config else {}
    clap = SimpleNamespace(augmentation=AugmentationSettings(gain=gain))
    return read_settings(SimpleNamespace(train_loader=loader, settings=settings, config=config, clap=clap))


@pytest.mark.parametrize(
    "key", ["seed", "optimizer.lr", "dataset.batch_size", "trainer.precision", "trainer.monitor", "dataset.train_folds"]
)
def test_setting_of_the_result_is_refused(key: str):
    before = {key: 5, **make_settings()}
    with pytest.raises(
        ValueError, match=rf"trained with {key}=\S+, now it is {key}=7; restore .* init_from={LAST} \(a resumed"
    ):
        check_settings(LAST, before, {**before, key: 7})


@pytest.mark.parametrize(
    "key",
    [
        "trainer.max_epochs",
        "trainer.max_steps",
        "trainer.patience",
        "optimizer.algorithm.fused",
        "trainer.fused_attention",
        "dataset.metadata",
        "dataset.metadata.train",
        "dataset.train",
        "dataset.val.0",
        "dataset.corpora.mine.test",
    ],
)
def test_length_of_the_training_is_applied_and_logged(key: str, caplog: pytest.LogCaptureFixture):
    before = {key: 5, **make_settings()}
    check_settings(LAST, before, {**before, key: 7})
    assert f"resumes with {key}=7, before it was {before.get(key)}" in caplog.text


def test_local_settings_are_not_compared():
    moved = {
        **CONFIG,
        "device": "cuda",
        "dataset": {**CONFIG["dataset"], "root": "b", "num_workers": 0, "shard_cache": "b"},
    }
    assert make_settings() == make_settings(moved)


def test_trainer_without_a_config_compares_what_it_knows():
    before = make_settings()
    check_settings(LAST, before, make_settings({}))
    for changes, key in (({"precision": "bf16"}, "trainer.precision"), ({"batch_size": 4}, "dataset.batch_size")):
        now = make_settings({}, **changes)
        with pytest.raises(ValueError, match=rf"trained with {key}=\w+, now it is {key}="):
            check_settings(LAST, before, now)
        with pytest.raises(ValueError, match=rf"trained with {key}=\w+, now it is {key}="):
            check_settings(LAST, make_settings({}), now)
    with pytest.raises(ValueError, match="trained with augmentation.gain=0.0, now it is augmentation.gain=6.0"):
        check_settings(LAST, make_settings({}), make_settings({}, gain=6.0))


def refuse_data(before: list[Clip], now: list[Clip], match: str) -> None:
    datasets = [{"train": make_dataset(clips)} for clips in (before, now)]
    digests = [{kind: digest_dataset(dataset) for kind, dataset in some.items()} for some in datasets]
    check_data(LAST, digests[0], digests[0], datasets[0])
    with pytest.raises(ValueError, match=match):
        check_data(LAST, *digests, datasets[1])


def test_changed_data_is_refused_and_names_the_first_difference(ramps: list[Clip]):
    end = "; restore the files"
    recaptioned = [*ramps[:3], replace(ramps[3], captions=("a cat",)), *ramps[4:]]
    refuse_data(ramps, recaptioned, f"train split had 10 clips and has 10, the first difference is clip 4, now 3{end}")
    refuse_data(ramps, ramps[::-1], f"has 10, the first difference is clip 1, now 9{end}")
    refuse_data(ramps, ramps[:-1], f"had 10 clips and has 9, the first difference is at the end{end}")
    refuse_data(ramps[:-1], ramps, f"had 9 clips and has 10, the first difference is clip 10, now 9{end}")
    refuse_data(ramps, [replace(ramps[0], label="dog"), *ramps[1:]], "clip 1, now 0")


def test_moved_recordings_are_the_same_data(ramps: list[Clip], tmp_path: Path):
    digests = {"train": digest_dataset(make_dataset(ramps))}
    for clip in ramps:
        (tmp_path / clip.path.name).write_bytes(clip.path.read_bytes())
    moved = make_dataset([replace(clip, path=tmp_path / clip.path.name) for clip in ramps])
    check_data(LAST, digests, {"train": digest_dataset(moved)}, {"train": moved})


def test_split_that_is_gone_is_refused(ramps: list[Clip]):
    digests = {"train": digest_dataset(make_dataset(ramps))}
    with pytest.raises(ValueError, match="the test split had 10 clips and has 0, the first difference is at the end"):
        check_data(LAST, {**digests, "test": digests["train"]}, digests, {})


WEIGHT = torch.nn.Parameter(torch.zeros(2))
BETAS = {"betas": (0.9, 0.98)}


def save_state(optimizer: Optimizer, scheduler: LRScheduler | None = None) -> dict:
    return {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict() if scheduler else None}


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        (partial(AdamW, lr=0.1), partial(AdamW, lr=0.2), "lr"),
        (partial(AdamW, weight_decay=0.1), partial(AdamW, weight_decay=0.0), "weight_decay"),
        (partial(AdamW, **BETAS), AdamW, "betas"),
        (partial(SGD, momentum=0.9), partial(SGD, momentum=0.5), "momentum"),
    ],
)
def test_optimizer_with_other_hyperparameters_is_refused(before, now, name: str):
    state = save_state(before([WEIGHT]))
    check_optimizer(LAST, state, before([WEIGHT]), None)
    with pytest.raises(ValueError, match=rf"trained with {name}=.* in the optimizer's group 0, now it is"):
        check_optimizer(LAST, state, now([WEIGHT]), None)


def test_what_a_scheduler_changes_is_not_compared():
    optimizer = AdamW([WEIGHT], lr=0.1)
    schedule = OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    fresh = save_state(optimizer, schedule)
    optimizer.step()
    schedule.step()
    check_optimizer(LAST, fresh, optimizer, schedule)
    states = []
    for lr in (0.1, 0.2):
        optimizer = AdamW([WEIGHT], lr=lr)
        schedule = LambdaLR(optimizer, lambda step: 0.5)
        states.append(save_state(optimizer, schedule))
        check_optimizer(LAST, states[-1], optimizer, schedule)
    with pytest.raises(ValueError, match=r"trained with initial_lr=0.1 in the optimizer's group 0, now it is 0.2"):
        check_optimizer(LAST, states[0], optimizer, schedule)


def test_another_number_of_parameter_groups_is_refused():
    state = save_state(AdamW([{"params": [WEIGHT]}, {"params": [torch.nn.Parameter(WEIGHT.clone())]}]))
    with pytest.raises(ValueError, match="trained with 2 parameter groups, now with 1 parameter group;"):
        check_optimizer(LAST, state, AdamW([WEIGHT]), None)


def test_scheduler_that_came_or_went_is_refused():
    optimizer = AdamW([WEIGHT])
    plain, schedule = save_state(optimizer), LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ValueError, match="trained with no scheduler, now with a scheduler; restore the optimizer"):
        check_optimizer(LAST, plain, optimizer, schedule)
    with pytest.raises(ValueError, match="trained with a scheduler, now with no scheduler"):
        check_optimizer(LAST, save_state(optimizer, schedule), optimizer, None)


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_keeps_its_kernels_when_a_state_is_loaded(fused: bool):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    before, now = AdamW([weights[0]], fused=not fused), AdamW([weights[1]], fused=fused)
    for weight, optimizer in zip(weights, (before, now), strict=True):
        weight.grad = torch.ones(2)
        optimizer.step()
    check_optimizer(LAST, save_state(before), now, None)
    load_optimizer(now, deepcopy(before.state_dict()))
    assert now.param_groups[0]["fused"] is fused
    before.step(), now.step()
    torch.testing.assert_close(*weights)


def test_optimizer_keeps_the_memory_layout_of_its_parameters_when_a_state_is_loaded():
    weight, gradient = torch.nn.Parameter(torch.randn(4, 3, 2, 2)), torch.randn(4, 3, 2, 2)
    before = AdamW([weight], fused=True)
    weight.grad = gradient
    before.step()
    other = torch.nn.Parameter(weight.detach().to(memory_format=torch.channels_last, copy=True))
    now = AdamW([other], fused=True)
    load_optimizer(now, deepcopy(before.state_dict()))
    other.grad = torch.empty_like(other).copy_(gradient)
    before.step(), now.step()
    torch.testing.assert_close(other, weight)

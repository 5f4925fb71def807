"""Parameter groups and the learning-rate schedule."""

import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from clap.loss import SigmoidLoss, SymmetricCrossEntropyLoss
from clap.optimizer import build_optimizer, learning_rate_factor, parameter_groups

RATES = {"audio_encoder": 0.1, "text_encoder": 0.2}


def find_groups(clap: nn.Module, criterion: nn.Module | None = None) -> dict[str, dict]:
    criterion = criterion or SymmetricCrossEntropyLoss()
    groups = parameter_groups(clap, criterion, rates=RATES, lr=0.3, weight_decay=0.01)
    return {group["name"]: group for group in groups}


def find_group(groups: dict[str, dict], parameter: nn.Parameter) -> str:
    return next(name for name, group in groups.items() if any(p is parameter for p in group["params"]))


def build(clap: nn.Module, **changes):
    settings = {
        "algorithm": partial(torch.optim.AdamW, betas=(0.9, 0.98)),
        "lr": 0.3,
        "audio_encoder_lr": 0.1,
        "text_encoder_lr": 0.2,
        "weight_decay": 0.01,
        "warmup_steps": 2,
        "schedule": "cosine",
        "total_steps": 10,
    }
    return build_optimizer(clap, SymmetricCrossEntropyLoss(), **settings | changes)


@pytest.fixture(scope="module")
def clap(tiny_clap) -> nn.Module:
    return tiny_clap()


def test_norms_biases_and_logit_scale_do_not_decay(clap):
    groups = find_groups(clap)
    for parameter in (
        clap.logit_scale,
        clap.audio_encoder.bn0.weight,
        clap.audio_encoder.trunk.norm.weight,
        clap.text_encoder.transformer.ln_f.bias,
        clap.audio_projection.linear1.bias,
    ):
        name = find_group(groups, parameter)
        assert name.endswith("/no_decay") and groups[name]["weight_decay"] == 0


def test_weights_decay(clap):
    groups = find_groups(clap)
    name = find_group(groups, clap.audio_projection.linear1.weight)
    assert name == "rest/decay" and groups[name]["weight_decay"] == 0.01


def test_encoders_and_the_rest_have_their_learning_rates(clap):
    rates = {name.split("/")[0]: group["lr"] for name, group in find_groups(clap).items()}
    assert rates == {"audio_encoder": 0.1, "text_encoder": 0.2, "rest": 0.3}


def test_every_trainable_parameter_is_in_one_group(clap):
    listed = [id(p) for group in find_groups(clap).values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in clap.parameters())


def test_frozen_part_has_no_group(tiny_clap):
    clap = tiny_clap()
    clap.freeze(["text_encoder"])
    assert not any(name.startswith("text_encoder") for name in find_groups(clap))


def test_part_that_trains_later_has_groups_from_the_start(tiny_clap):
    clap = tiny_clap().freeze(["text_encoder"])
    names = [[group["name"] for group in build(clap, unfreeze_at=step)[0].param_groups] for step in (None, 5)]
    assert not any(name.startswith("text_encoder") for name in names[0])
    assert {"text_encoder/decay", "text_encoder/no_decay"} <= set(names[1])


def test_loss_parameters_are_trained(clap):
    criterion = SigmoidLoss()
    assert find_group(find_groups(clap, criterion), criterion.logit_bias) == "rest/no_decay"


def test_nothing_to_train_is_an_error(tiny_clap):
    clap = tiny_clap().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        find_groups(clap)


def test_warmup_rises_linearly_to_the_peak():
    factors = [learning_rate_factor(i, warmup_steps=4, total_steps=12, schedule="cosine") for i in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_zero():
    factor = partial(learning_rate_factor, warmup_steps=4, total_steps=12, schedule="cosine")
    assert factor(8) == pytest.approx(0.5)
    assert factor(6) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factor(12) == factor(20) == 0


def test_cosine_ends_at_the_floor():
    factor = partial(learning_rate_factor, warmup_steps=4, total_steps=12, schedule="cosine", floor=0.1)
    assert factor(3) == factor(4) == 1.0
    assert factor(8) == pytest.approx(0.55)
    assert factor(12) == factor(20) == pytest.approx(0.1)


def test_learning_rates_end_at_the_same_share_of_their_peaks(clap):
    optimizer, scheduler = build(clap, lr=0.4, audio_encoder_lr=0.1, min_lr=0.04)
    rates = {}
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates = {group["name"].split("/")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"rest": 0.04, "audio_encoder": 0.01, "text_encoder": 0.02})


def test_minimum_above_the_peak_is_refused(clap):
    with pytest.raises(ValueError, match=r"optimizer.min_lr=0.5 must be at most optimizer.lr=0.3; lower it"):
        build(clap, min_lr=0.5)


@pytest.mark.parametrize(("given", "steps"), [(0.2, 2), (0.04, 0), (1, 1), (3.0, 3)])
def test_warmup_below_one_is_a_share_of_the_training(clap, given, steps):
    _, scheduler = build(clap, warmup_steps=given, total_steps=10)
    assert scheduler.lr_lambdas[0].keywords["warmup_steps"] == steps


def test_warmup_of_a_fraction_of_a_step_is_refused(clap):
    with pytest.raises(ValueError, match=r"warmup_steps=2.5 must be a whole number of steps, or a share below 1"):
        build(clap, warmup_steps=2.5)


def test_constant_stays_at_the_peak():
    factor = partial(learning_rate_factor, warmup_steps=1, total_steps=12, schedule="constant")
    assert [factor(i) for i in (0, 1, 11, 100)] == [1.0] * 4


def test_no_warmup_starts_at_the_peak():
    assert learning_rate_factor(0, warmup_steps=0, total_steps=5, schedule="cosine") == 1.0


def test_schedule_scales_every_group(clap):
    optimizer, scheduler = build(clap)
    first = {group["name"].split("/")[0]: group["lr"] for group in optimizer.param_groups}
    assert first == pytest.approx({"audio_encoder": 0.05, "text_encoder": 0.1, "rest": 0.15})


def test_unknown_schedule_lists_the_allowed_values(clap):
    with pytest.raises(ValueError, match="optimizer.schedule='linear' is not one of cosine, constant"):
        build(clap, schedule="linear")


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "audio_encoder_lr", "weight_decay", "warmup_steps", "min_lr"])
def test_value_that_is_negative_or_not_finite_is_named(clap, name, value):
    with pytest.raises(ValueError, match=f"optimizer.{name}={value} must be finite and at least 0"):
        build(clap, **{name: value})


def test_learning_rates_of_zero_are_refused(clap, tiny_clap):
    rates = {"lr": 0.0, "audio_encoder_lr": 0.0, "text_encoder_lr": 0.0}
    with pytest.raises(ValueError, match="all trained parts have the learning rate 0"):
        build(clap, **rates)
    build(clap, **rates | {"text_encoder_lr": 0.1})
    frozen = tiny_clap().freeze(["text_encoder"])
    with pytest.raises(ValueError, match="all trained parts have the learning rate 0"):
        build(frozen, **rates | {"text_encoder_lr": 0.1})


@pytest.mark.parametrize(("steps", "warned"), [(9, False), (10, True), (40, True)])
def test_warmup_as_long_as_the_training_is_reported(clap, steps, warned, caplog):
    build(clap, warmup_steps=steps, total_steps=10)
    assert (f"optimizer.warmup_steps={steps}, but training has 10 steps" in caplog.text) == warned


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_every_yaml_builds_its_optimizer(clap, tiny_config, name):
    config = tiny_config(f"optimizer={name}", "optimizer.lr=0.5")["optimizer"]
    optimizer, _ = instantiate(config)(clap, SymmetricCrossEntropyLoss(), total_steps=10)
    assert type(optimizer).__name__.lower() == name
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.5}

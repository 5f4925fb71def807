"""Steps whose loss or gradients are not finite are suppressed, and named one step later."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Adam, AdamW, Optimizer

from clap.training.finite import MIN_LOSS_SCALE, NotFiniteError, StepGuard
from clap.training.sharding import total_norm

FUSED = [partial(AdamW, fused=True), partial(Adam, fused=True), partial(SGD, lr=0.1, momentum=0.9, fused=True)]


def name_step() -> str:
    return "at step 7"


def make_guard(make_optimizer: Callable[..., Optimizer]) -> tuple[StepGuard, nn.Linear]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return StepGuard(make_optimizer(model.parameters()), scaler, model.named_parameters), model


def take_step(guard: StepGuard, model: nn.Linear, *, loss: float = 1.0, gradient: float = 1.0) -> Tensor:
    """One step with the given loss and gradients; returns the norm for clipping."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    norm = guard.suppress(torch.tensor(loss), norm, name_step)
    nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
    guard.step()
    return norm


def copy_state(guard: StepGuard, model: nn.Linear) -> list[Tensor]:
    state = [value for values in guard.optimizer.state.values() for value in values.values()]
    return [tensor.clone() for tensor in (*model.parameters(), *state)]


@pytest.mark.parametrize("make_optimizer", FUSED)
@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"loss": math.nan}, "the loss is nan at step 7; checkpoints stay"),
        ({"gradient": math.inf}, "the gradient of weight is inf at step 7; "),
        ({"gradient": math.nan}, "the gradient of weight is nan at step 7; "),
        ({"gradient": 1e38}, "the norm of the gradients exceeds float32 at step 7; "),
    ],
)
def test_step_that_is_not_finite_changes_nothing(make_optimizer: Callable, bad: dict, problem: str):
    guard, model = make_guard(make_optimizer)
    take_step(guard, model)
    guard.check()
    before = copy_state(guard, model)
    assert take_step(guard, model, **bad) == 0
    torch.testing.assert_close(copy_state(guard, model), before, rtol=0, atol=0)
    with pytest.raises(NotFiniteError, match=problem):
        guard.check()


def test_finite_steps_are_those_of_the_optimizer():
    guard, model = make_guard(FUSED[0])
    plain, other = make_guard(FUSED[0])
    for gradient in (0.1, -0.2, 0.05):
        take_step(guard, model, gradient=gradient)
        for parameter in other.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        plain.optimizer.step()
    guard.check()
    torch.testing.assert_close(copy_state(guard, model), copy_state(plain, other), rtol=0, atol=0)
    assert not hasattr(guard.optimizer, "found_inf")


@pytest.mark.parametrize("make_optimizer", [AdamW, partial(SGD, lr=0.1)])
def test_optimizer_without_a_flag_is_checked_before_its_step(make_optimizer: Callable):
    guard, model = make_guard(make_optimizer)
    before = copy_state(guard, model)
    with pytest.raises(NotFiniteError, match="the gradient of weight is nan at step 7"):
        take_step(guard, model, gradient=math.nan)
    torch.testing.assert_close(copy_state(guard, model), before, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1024.0, MIN_LOSS_SCALE])
def test_scaler_skips_infinite_gradients_while_its_scale_is_large(scale: float):
    guard, model = make_guard(FUSED[0])
    guard.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = copy_state(guard, model)
    guard.scaler.scale(torch.ones(()))  # as the trainer does before the backward pass
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    guard.scaler.unscale_(guard.optimizer)
    guard.suppress(torch.ones(()), torch.tensor(math.inf), name_step)
    guard.step()
    guard.scaler.update()
    torch.testing.assert_close(copy_state(guard, model)[:2], before, rtol=0, atol=0)
    assert guard.scaler.get_scale() == scale / 2
    if scale > MIN_LOSS_SCALE:
        return guard.check()
    with pytest.raises(NotFiniteError, match="the gradient of weight is inf at step 7"):
        guard.check()


def test_scaler_does_not_apply_a_step_whose_loss_is_not_finite():
    guard, model = make_guard(FUSED[0])
    guard.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = copy_state(guard, model)
    guard.scaler.scale(torch.ones(()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    guard.scaler.unscale_(guard.optimizer)
    guard.suppress(torch.tensor(math.nan), torch.ones(()), name_step)
    guard.step()
    torch.testing.assert_close(copy_state(guard, model)[:2], before, rtol=0, atol=0)
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        guard.check()


def test_gradient_of_a_sharded_weight_is_named():
    def run(rank: int) -> None:
        model = nn.Linear(3, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        guard = StepGuard(AdamW(model.parameters(), fused=True), scaler, model.named_parameters)
        model(torch.full((1, 3), math.nan if rank == 1 else 1.0)).sum().backward()
        guard.suppress(torch.ones(()), total_norm([p.grad for p in model.parameters()]), name_step)
        guard.step()
        guard.check()

    for error in run_ranks(run):
        assert isinstance(error, NotFiniteError) and "the gradient of weight is nan at step 7" in str(error)


def test_step_that_is_not_finite_on_one_rank_is_suppressed_on_all():
    def run(rank: int) -> None:
        guard, model = make_guard(FUSED[0])
        before = copy_state(guard, model)
        take_step(guard, model, loss=math.nan if rank == 1 else 1.0)
        torch.testing.assert_close(copy_state(guard, model)[:2], before, rtol=0, atol=0)
        guard.check()

    errors = run_ranks(run)
    assert all(isinstance(error, NotFiniteError) and "the loss is nan at step 7" in str(error) for error in errors)

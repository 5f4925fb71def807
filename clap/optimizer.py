"""Parameter groups (a learning rate per encoder, no weight decay on norms and biases) and learning-rate schedule."""

import logging
import math
from collections.abc import Callable, Collection
from functools import partial

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from clap.config.values import SCHEDULES, check_learning_rates

log = logging.getLogger(__name__)


def build_optimizer(
    clap: nn.Module,
    criterion: nn.Module,
    *,
    algorithm: Callable[..., Optimizer],
    lr: float,
    audio_encoder_lr: float,
    text_encoder_lr: float,
    weight_decay: float,
    warmup_steps: float,
    schedule: str,
    total_steps: int,
    min_lr: float = 0.0,
    unfreeze_at: int | None = None,
) -> tuple[Optimizer, LambdaLR]:
    """Build the optimizer and the schedule for the trainable parameters of the model and the loss.

    Args:
        algorithm: builds the optimizer from parameter groups.
        lr: peak learning rate of the projections, the logit scale and the loss.
        audio_encoder_lr, text_encoder_lr: peak learning rates of the encoders.
        weight_decay: for parameters with two or more dimensions; norms, biases and scales have none.
        warmup_steps: steps of the linear warmup to the peak; a number below 1 is a share of `total_steps`.
        schedule: `cosine` decay to `min_lr` at `total_steps`, or `constant`.
        unfreeze_at: step from which frozen parts train, by the same schedule; None: never.
        min_lr: where `lr` ends; the learning rates of the encoders end at the same share of their peaks.

    Raises:
        ValueError: the schedule is unknown, a number is out of range or not finite, or no parameter is trained.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={schedule!r} is not one of {', '.join(SCHEDULES)}")
    numbers = {
        "lr": lr,
        "audio_encoder_lr": audio_encoder_lr,
        "text_encoder_lr": text_encoder_lr,
        "weight_decay": weight_decay,
        "warmup_steps": warmup_steps,
        "min_lr": min_lr,
    }
    if wrong := [name for name, value in numbers.items() if not 0 <= value < math.inf]:
        raise ValueError(f"optimizer.{wrong[0]}={numbers[wrong[0]]} must be finite and at least 0")
    check_learning_rates(lr=lr, min_lr=min_lr, warmup_steps=warmup_steps)
    warmup_steps = round(warmup_steps if warmup_steps >= 1 else warmup_steps * total_steps)
    if warmup_steps >= total_steps > 0:
        log.warning(
            "optimizer.warmup_steps=%d, but training has %d steps and ends at %.3g of the peak learning rate; lower "
            "optimizer.warmup_steps or train longer",
            *(warmup_steps, total_steps, total_steps / warmup_steps),
        )
    rates = {"audio_encoder": audio_encoder_lr, "text_encoder": text_encoder_lr}
    later = clap.frozen if unfreeze_at is not None else ()
    groups = parameter_groups(clap, criterion, rates=rates, lr=lr, weight_decay=weight_decay, later=later)
    if not any(group["lr"] for group in groups):
        raise ValueError(f"optimizer.lr={lr}: all trained parts have the learning rate 0; raise it")
    optimizer = algorithm(groups)
    shape = {"warmup_steps": warmup_steps, "total_steps": total_steps, "schedule": schedule}
    factor = partial(learning_rate_factor, **shape, floor=min_lr / lr if lr else 0.0)
    return optimizer, LambdaLR(optimizer, factor)


def parameter_groups(
    clap: nn.Module,
    criterion: nn.Module,
    *,
    rates: dict[str, float],
    lr: float,
    weight_decay: float,
    later: Collection[str] = (),
) -> list[dict]:
    """Groups named PART/decay and PART/no_decay; PART is an encoder of `rates` or `rest`. Checkpoints keep the names.

    Args:
        later: parts that are frozen at first.

    Raises:
        ValueError: no parameter is trainable.
    """
    groups: dict[str, dict] = {}
    for name, parameter in [*clap.named_parameters(), *criterion.named_parameters(prefix="loss")]:
        if not parameter.requires_grad and name.split(".")[0] not in later:
            continue
        part = name.split(".")[0] if name.split(".")[0] in rates else "rest"
        decays = parameter.ndim >= 2
        group = groups.setdefault(
            f"{part}/{'decay' if decays else 'no_decay'}",
            {"params": [], "lr": rates.get(part, lr), "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is trainable: freeze lists every part; remove a part from freeze")
    return [{"name": name, **group} for name, group in groups.items()]


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int, schedule: str, floor: float = 0.0) -> float:
    """Learning rate as a fraction of its peak, at a step counted from 0; the cosine ends at `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def describe_learning_rate(optimizer: Optimizer, scheduler: LRScheduler | None) -> str:
    """`0.0005, audio_encoder 0.0001; warmup 20 steps, then cosine to 5e-06`, for the log."""
    peaks: dict[str, float] = {}
    for group in optimizer.param_groups:
        peaks.setdefault(group.get("name", "").partition("/")[0], group.get("initial_lr", group["lr"]))
    highest = max(peaks.values())
    others = [f"{part or 'another group'} {peak:g}" for part, peak in peaks.items() if peak != highest]
    factor = scheduler.lr_lambdas[0] if isinstance(scheduler, LambdaLR) else None
    if isinstance(factor, partial) and factor.func is learning_rate_factor:
        shape = factor.keywords
        end = f"cosine to {shape.get('floor', 0.0) * highest:g}" if shape["schedule"] == "cosine" else shape["schedule"]
        course = f"warmup {shape['warmup_steps']} steps, then {end}"
    else:
        course = "constant" if scheduler is None else type(scheduler).__name__
    return f"{', '.join([f'{highest:g}', *others])}; {course}"

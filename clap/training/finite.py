"""Losses, gradients and weights that are not finite: they stop a run before they reach the weights or a checkpoint."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from clap.process_group import gather_objects, reduce_max
from clap.training.sharding import gather_full

if TYPE_CHECKING:  # the trainer imports this module
    from clap.dataset.loader import Batch
    from clap.training.trainer import ClapTrainer

MIN_LOSS_SCALE = 2.0**-10  # of fp16; it starts at 2**16 and halves with each skipped step
ADVICE = "checkpoints stay as they were; lower optimizer.lr or set trainer.precision=fp32"


class NotFiniteError(ValueError, ArithmeticError):
    """A loss, gradient or weight is not finite; the same step would fail again."""


def find_non_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """`NAME is nan` of the first tensor with a value that is not finite; None if all are finite."""
    for name, tensor in tensors:
        if tensor is not None and not torch.isfinite(tensor).all():
            return f"{name} is {tensor[~torch.isfinite(tensor)][0].item()}"
    return None


def describe_gradients(optimizer: Optimizer, named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first parameter whose gradient is not finite and its parameter group; None if all are finite. Collective.

    Args:
        named: names and parameters of the model and the loss.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in named:
        if id(parameter) not in groups:
            continue
        if found := find_non_finite([(f"the gradient of {name}", gather_full(parameter.grad))]):
            group = groups[id(parameter)].get("name")
            return found + (f" (parameter group {group})" if group else "")
    return None


class StepGuard:
    """Suppresses an optimizer step whose loss or gradients are not finite on a rank, without waiting for the device.

    The flag of the step stays on the device, where a fused optimizer reads it: the step then changes neither weights
    nor moments nor step counts. The host reads it one step later. For an optimizer that cannot read a flag
    (`foreach`, Python), the host reads it before the step.

    Args:
        scaler: of fp16; it skips steps with infinite gradients until its scale is below MIN_LOSS_SCALE.
        named_parameters: -> names and parameters of the model and the loss, for the error.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        named_parameters: Callable[[], Iterable[tuple[str, Tensor]]],
    ) -> None:
        self.optimizer, self.scaler, self.named_parameters = optimizer, scaler, named_parameters
        device = optimizer.param_groups[0]["params"][0].device
        self.reads_flag = getattr(optimizer, "_step_supports_amp_scaling", False)  # PyTorch's mark of fused optimizers
        self.flag = torch.zeros((), device=device)  # 1: the step is suppressed
        self.host_flag, self.copied = self.flag, None
        if device.type == "cuda":
            self.host_flag, self.copied = torch.zeros((), pin_memory=True), torch.cuda.Event()
        self.loss, self.where = self.flag, str

    def suppress(self, loss: Tensor, norm: Tensor, where: Callable[[], str]) -> Tensor:
        """Suppress the next step if the loss () or the norm of the gradients () is not finite on a rank; collective.

        Returns the norm for clipping: 0 if the step is suppressed, so that the error can show its gradients.

        Args:
            where: -> step and batch, for the error.

        Raises:
            NotFiniteError: the step is suppressed, and the optimizer cannot read the flag.
        """
        is_bad = ~norm.isfinite()
        if self.scaler.is_enabled():
            is_bad &= self.scaler.scale(torch.ones_like(norm)) <= MIN_LOSS_SCALE
        self.flag.copy_(is_bad | ~loss.isfinite())
        reduce_max(self.flag)
        self.loss, self.where = loss.detach(), where
        if self.copied is not None:
            self.host_flag.copy_(self.flag, non_blocking=True)
            self.copied.record()
        if not self.reads_flag:
            self.check()
        return norm.masked_fill(self.flag.bool(), 0.0)

    def step(self) -> None:
        """Step the optimizer, unless `suppress` has set the flag."""
        hook = self.optimizer.register_step_pre_hook(self.pass_flag)  # after the scaler has passed its own flag
        self.scaler.step(self.optimizer)
        hook.remove()
        vars(self.optimizer).pop("found_inf", None)

    def pass_flag(self, optimizer: Optimizer, *_: object) -> None:
        if self.reads_flag:
            optimizer.found_inf = torch.maximum(getattr(optimizer, "found_inf", self.flag), self.flag)

    def check(self) -> None:
        """Wait for the flag of the last step; collective if it is set, as it then is on all ranks.

        Raises:
            NotFiniteError: the last step was suppressed; the error names it.
        """
        if self.copied is not None:
            self.copied.synchronize()
        if not self.host_flag:
            return
        where = self.where()
        loss = None if self.loss.isfinite() else f"the loss is {self.loss.item()} {where}"
        gradient = describe_gradients(self.optimizer, self.named_parameters())
        losses, gradients = zip(*gather_objects((loss, gradient and f"{gradient} {where}")), strict=True)
        norm = f"the norm of the gradients exceeds float32 {where}"
        raise NotFiniteError(f"{next(filter(None, (*losses, *gradients)), norm)}; {ADVICE}")


def name_batch(trainer: "ClapTrainer", batch: "Batch") -> Callable[[], str]:
    """A function that names step, epoch and first clips of a batch, for an error that may come a step later."""
    place, index = f"step {trainer.step + 1} (epoch {trainer.epoch + 1}, batch {trainer.step_in_epoch}", batch.index[:4]
    clips = trainer.train_loader.dataset.clips
    return lambda: f"at {place}: {', '.join(clips[i].id for i in index.tolist())}, ...)"

"""The options `trainer.*` of conf/config.yaml, and mixed precision."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COUNTS = ("max_steps", "patience", "eval_every", "log_every", "save_every")


@dataclass(frozen=True)
class TrainerSettings:
    """Options of ClapTrainer besides the number of epochs.

    Args:
        max_steps: ends training before the last epoch.
        precision: `fp32`, `bf16` or `fp16` (GPU only) for the two encoders; log-mel and loss stay float32.
        max_grad_norm: gradients are clipped to this norm.
        monitor: metric, higher is better, that chooses the best checkpoint; None for the first evaluator's first
            metric, averaged over corpora.
        patience: validations without a better monitor before training stops; None trains to the end.
        eval_every: epochs between validations.
        log_every: steps between logged training metrics.
        save_every: steps between writing checkpoints/last, besides the ends of epochs.

    Raises:
        ValueError: an option is out of range.
    """

    max_steps: int | None = None
    precision: str = "fp32"
    max_grad_norm: float = 1.0
    monitor: str | None = None
    patience: int | None = None
    eval_every: int = 1
    log_every: int = 10
    save_every: int | None = None

    def __post_init__(self) -> None:
        for name in COUNTS:
            check_count(name, getattr(self, name))
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}")


def check_count(name: str, value: int | None) -> None:
    """Refuse an option below one."""
    if value is not None and value < 1:
        raise ValueError(f"trainer.{name}={value} must be at least 1")


def make_autocast(precision: str, device: torch.device) -> tuple[AbstractContextManager, torch.amp.GradScaler]:
    """Autocast of the encoders, and the scaler of the loss, which only fp16 enables.

    Raises:
        ValueError: fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("trainer.precision=fp16 needs a GPU; on a CPU choose bf16 or fp32")
    dtype = PRECISIONS[precision]
    autocast = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    return autocast, torch.amp.GradScaler(device.type, enabled=precision == "fp16")

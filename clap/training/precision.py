"""Mixed precision in training."""

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast; fp32 needs none


def make_autocast(precision: str, device: torch.device) -> tuple[AbstractContextManager, torch.amp.GradScaler]:
    """Autocast of the encoders, and the gradient scaler, which is enabled only for fp16.

    Raises:
        ValueError: the precision is fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("trainer.precision=fp16 needs a GPU; on a CPU set bf16 or fp32")
    dtype = DTYPES.get(precision)
    autocast = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    return autocast, torch.amp.GradScaler(device.type, enabled=precision == "fp16")

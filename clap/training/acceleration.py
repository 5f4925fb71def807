"""Switches of the trainer that change speed and memory, not what is computed, up to rounding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clap.model import Clap
from clap.training.trainer_settings import TrainerSettings

LENGTH_STEP = 16  # tokens: a compiled text encoder has a few lengths, not one of each batch
MAX_RECOMPILATIONS = 64  # of one function: blocks of one class share it, in training and in evaluation, by shape


def prepare(clap: Clap, settings: TrainerSettings) -> None:
    """Apply `trainer.channels_last`, `fused_attention`, `activation_checkpointing` and `compile` to a model, in place.

    Names and shapes of its weights stay, so checkpoints are those of any other run.

    Raises:
        ValueError: an encoder has no activation checkpointing.
    """
    if settings.channels_last is True or (settings.channels_last == "auto" and clap.device.type == "cuda"):
        clap.audio_encoder.to(memory_format=torch.channels_last)  # convolutions follow the layout of their weights
    if settings.fused_attention:
        clap.audio_encoder.fuse_attention()
    if settings.activation_checkpointing:
        for name in ("audio_encoder", "text_encoder"):
            if name not in clap.frozen or settings.unfreeze_at is not None:  # a frozen part keeps no activations
                clap.get_submodule(name).checkpoint_activations()
    if settings.compile:
        torch._dynamo.config.recompile_limit = MAX_RECOMPILATIONS  # beyond it, blocks run uncompiled
        clap.text_encoder.length_step = LENGTH_STEP
        for module in (*clap.audio_encoder.parts_to_compile(), clap.text_encoder.transformer):
            module.compile()


@contextmanager
def matmul_precision(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Whether matrix products and convolutions of a GPU round their inputs to TF32 (10 bits) inside; as before after.

    The log-mel stays in float32.
    """
    if device.type != "cuda":
        yield
        return
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = tf32
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value

"""Switches of the trainer that change speed and memory, not what is computed, up to rounding."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clap.audio_model import AudioModel
from clap.training.trainer_settings import TrainerSettings

LENGTH_STEP = 16  # tokens: a compiled text encoder has a few lengths, not one of each batch
MAX_RECOMPILATIONS = 256  # of one function, which all blocks of a class share: by shape, in training and evaluation


def prepare(clap: AudioModel, settings: TrainerSettings) -> None:
    """Apply `trainer.channels_last`, `fused_attention`, `activation_checkpointing` and `compile` to a model, in place.

    Names and shapes of its weights stay, so checkpoints are those of any other run.

    Raises:
        ValueError: an encoder has no activation checkpointing.
    """
    if is_on(settings.channels_last, clap):
        clap.audio_encoder.to(memory_format=torch.channels_last)  # convolutions follow the layout of their weights
    if is_on(settings.fused_attention, clap):
        clap.audio_encoder.fuse_attention()
    if settings.activation_checkpointing:
        for name in list_encoders(clap):
            if name not in clap.frozen or settings.unfreeze_at is not None:  # a frozen part keeps no activations
                clap.get_submodule(name).checkpoint_activations()
    if settings.compile:
        torch._dynamo.config.recompile_limit = MAX_RECOMPILATIONS  # beyond it, blocks run uncompiled
        torch._dynamo.config.accumulated_recompile_limit = 4 * MAX_RECOMPILATIONS
        if clap.text_encoder is not None:
            clap.text_encoder.length_step = LENGTH_STEP
        for module in itertools.chain(*(clap.get_submodule(name).parts_to_compile() for name in list_encoders(clap))):
            module.compile(dynamic=False)  # a graph for each shape: with symbolic sizes, compiling takes minutes more


def list_encoders(clap: AudioModel) -> list[str]:
    """The names of the encoders that a model has."""
    return ["audio_encoder"] if clap.text_encoder is None else ["audio_encoder", "text_encoder"]


def is_on(switch: bool | str, clap: AudioModel) -> bool:
    """Whether a switch is True, or `auto` for a model on a GPU."""
    return switch is True or (switch == "auto" and clap.device.type == "cuda")


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

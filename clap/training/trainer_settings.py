"""The options `trainer.*` of conf/config.yaml. This module does not import torch."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

from clap.config.augmentation_settings import AugmentationSettings
from clap.config.values import FROZEN_WINDOWS, MICRO_BATCH_NORMS, PARALLEL, PRECISIONS, SWITCHES

COUNTS = (
    *("max_epochs", "max_steps", "patience", "eval_every", "eval_every_steps", "log_every", "save_every"),
    *("micro_batch_size", "keep_best", "keep_last", "unfreeze_at"),
)
ENCODERS = ("audio_encoder", "text_encoder")
MINUTES = ("eval_every_minutes", "save_every_minutes")


@dataclass(frozen=True)
class TrainerSettings:
    """Options of ClapTrainer.

    Args:
        max_epochs, max_steps: training ends after the one that comes first.
        allow_leaks: test clips may be cut from recordings of training clips; the protocol states their number.
        precision: `fp32`, `bf16` or `fp16` (GPU only) for the two encoders; log-mel and loss stay float32.
        max_grad_norm: gradients are clipped to this norm; None: not clipped.
        monitor: metric, higher is better, that chooses the best checkpoint; None for the first evaluator's first
            metric, averaged over corpora.
        patience: validations without a better monitor before training stops; None trains to the end.
        eval_every: epochs between validations.
        eval_every_steps, eval_every_minutes: validations within an epoch, besides those at its end; None: none.
        log_every: steps between logged training metrics.
        profile: a trace of a few steps by PyTorch's profiler is written.
        save_every, save_every_minutes: steps, or minutes, between writing checkpoints/last, besides the ends of epochs.
        keep_best, keep_last: checkpoints of the best validations and of the latest writes of checkpoints/last; those
            besides `best` and `last` are checkpoints/step-000123.
        ema_decay: of the moving average of the weights, checkpoints/ema; None: no average.
        unfreeze_at: steps after which the frozen parts of the model train; None: never.
        cache_frozen: outputs of frozen encoders are kept, in `frozen_cache.FOLDER` (True) or a folder, and not computed
            again (see clap/training/frozen_cache.py).
        frozen_windows: part of a longer clip that a frozen audio encoder is trained with, `random` or `middle`.
        parallel: with several processes, `ddp` (a whole model on each) or `fsdp` (the text encoder is sharded).
        sync_batchnorm: batch norms use the statistics of the global batch (GPU only); else those of each process.
        tf32: matrix products and convolutions of training steps round their inputs to TF32, on a GPU.
        channels_last: memory layout of the audio encoder's images; `auto`: True on a GPU.
        compile: the encoders are compiled by torch.compile.
        fused_attention: HTS-AT and Swin backbones compute attention by `scaled_dot_product_attention`; `auto`: on a
            GPU.
        activation_checkpointing: activations are computed again in the backward pass instead of kept.
        micro_batch_size: rows that each process encodes at once (gradient caching, see `GradientCache`); None: all.
        micro_batch_norm: with micro_batch_size, `frozen` batch norms, or the statistics of each `micro` batch.

    Raises:
        ValueError: an option is out of range.
    """

    max_epochs: int = 10
    max_steps: int | None = None
    allow_leaks: bool = False
    precision: str = "fp32"
    max_grad_norm: float | None = 1.0
    monitor: str | None = None
    patience: int | None = None
    eval_every: int = 1
    eval_every_steps: int | None = None
    eval_every_minutes: float | None = None
    log_every: int = 10
    profile: bool = False
    save_every: int | None = None
    save_every_minutes: float | None = None
    keep_best: int = 1
    keep_last: int = 1
    ema_decay: float | None = None
    unfreeze_at: int | None = None
    cache_frozen: bool | str = False
    frozen_windows: str = "random"
    parallel: str = "ddp"
    sync_batchnorm: bool = False
    tf32: bool = False
    channels_last: bool | str = "auto"
    compile: bool = False
    fused_attention: bool | str = "auto"
    activation_checkpointing: bool = False
    micro_batch_size: int | None = None
    micro_batch_norm: str = "frozen"

    def __post_init__(self) -> None:
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"trainer.{name}={value} must be at least 1")
        for name in MINUTES:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"trainer.{name}={value} must be above 0, or null")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"trainer.ema_decay={self.ema_decay} must be between 0 and 1, such as 0.999, or null")
        choices = {"micro_batch_norm": MICRO_BATCH_NORMS, "parallel": PARALLEL, "frozen_windows": FROZEN_WINDOWS}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"trainer.{name}={value!r} is not one of {', '.join(allowed)}")
        if self.sync_batchnorm and self.micro_batch_size is not None and self.micro_batch_norm == "micro":
            raise ValueError(
                "trainer.sync_batchnorm=true and trainer.micro_batch_norm=micro: chunks have no statistics of the "
                "global batch; set trainer.micro_batch_norm=frozen, or trainer.sync_batchnorm=false"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "trainer.precision=fp16 scales the loss, which trainer.parallel=fsdp does not support; set "
                "trainer.precision=bf16, or trainer.parallel=ddp"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"trainer.max_grad_norm={self.max_grad_norm} must be above 0, or null for gradients without clipping"
            )
        for name in ("channels_last", "fused_attention"):
            if (value := getattr(self, name)) not in SWITCHES:
                raise ValueError(f"trainer.{name}={value!r} is not one of auto, true, false")
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}")

    def num_steps(self, epoch: Sized) -> int:
        """Steps of a training whose epochs have the length of `epoch`, a loader or sampler, if `patience` allows."""
        steps = self.max_epochs * len(epoch)
        return min(steps, self.max_steps or steps)

    def find_cached(
        self, frozen: Sequence[str], augmentation: AugmentationSettings, *, has_teachers: bool
    ) -> list[str]:
        """The encoders whose outputs are cached, of the parts that are frozen.

        Args:
            augmentation: of the training clips. has_teachers: the loss has teachers (`DistillationLoss`).

        Raises:
            ValueError: no encoder is frozen, or a cache of one would not be exact.
        """
        if not self.cache_frozen:
            return []
        given, cached = f"trainer.cache_frozen={self.cache_frozen}", [name for name in ENCODERS if name in frozen]
        if not cached:
            raise ValueError(
                f"{given}, but no encoder is frozen; set freeze=[audio_encoder], [text_encoder] or both, or "
                "trainer.cache_frozen=false"
            )
        if self.unfreeze_at is not None:
            raise ValueError(
                f"{given} with trainer.unfreeze_at={self.unfreeze_at}: the outputs of an encoder that trains later "
                "change; set trainer.unfreeze_at=null, or trainer.cache_frozen=false"
            )
        if augmentation.changes_waveforms and "audio_encoder" in cached:
            raise ValueError(
                f"{given} with augmentation: the audio encoder receives other waveforms in each epoch; set "
                "augmentation=none, take audio_encoder out of freeze, or set trainer.cache_frozen=false"
            )
        if has_teachers and "audio_encoder" in cached:
            raise ValueError(
                f"{given} with loss.teachers: teachers embed the waveforms, which a cached audio encoder does not "
                "load; set another loss, take audio_encoder out of freeze, or set trainer.cache_frozen=false"
            )
        if self.parallel == "fsdp" and "text_encoder" in cached:
            raise ValueError(
                f"{given} with trainer.parallel=fsdp: a cached text encoder does not run and is not sharded; set "
                "trainer.parallel=ddp, or trainer.cache_frozen=false"
            )
        return cached

"""The loss of the global batch and its gradients: in one pass, or in chunks with cached gradients."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from clap.classifier import ClapAudioClassifier
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import Batch
from clap.loss import ClassificationLoss
from clap.model import Clap
from clap.training.classifier_objective import ClassificationObjective
from clap.training.distillation import DistillationLoss
from clap.training.grad_cache import GradientCache
from clap.training.parallel import average_gradients, encode_rows, global_loss, wrap_model
from clap.training.sharding import is_sharded
from clap.training.trainer_settings import TrainerSettings

ALL_ROWS = {"all_audio", "all_text", "all_clip_ids"}


class Objective:
    """Computes the loss of a model on the global batch, of which each process has a part.

    Args:
        criterion: two embeddings, logit scale, clip ids -> loss (see `clap.loss`).
        autocast: of the encoders. scaler: of the loss, for fp16.

    Raises:
        ValueError: the criterion has `gather: local`, and does not accept the rows of all processes.
    """

    def __init__(
        self,
        clap: Clap,
        criterion: nn.Module,
        settings: TrainerSettings,
        *,
        autocast: AbstractContextManager,
        scaler: torch.amp.GradScaler,
    ) -> None:
        check_gather(criterion)
        if not getattr(criterion, "learn_logit_scale", True):
            clap.logit_scale.requires_grad_(False)
        self.clap, self.criterion, self.autocast, self.scaler = clap, criterion, autocast, scaler
        self.sharded = settings.parallel == "fsdp"
        size, norm = settings.micro_batch_size, settings.micro_batch_norm
        self.cache = None if size is None else GradientCache(self.encode, size=size, norm=norm)
        self.model: nn.Module = clap

    def prepare(self) -> None:
        """Wrap the model for averaged gradients; again when parameters start to train."""
        self.model = self.clap if self.sharded else wrap_model(self.clap)

    def end_step(self) -> None:
        """Limit the logit scale, after a step of the optimizer."""
        self.clap.clamp_logit_scale()

    def read_metrics(self) -> dict[str, float]:
        """Metrics of the objective to log."""
        return {"train/logit_scale": self.clap.logit_scale.exp().item()}

    def forward(self, batch: Batch, rows: list[int]) -> tuple[Tensor, Callable[[], None]]:
        """The loss () of the global batch, and a function that computes its gradients.

        Args:
            rows: number of clips of each rank.
        """

        def loss_of(audio: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
            return global_loss(self.criterion, audio, text, logit_scale, batch.clip_ids, rows)

        if isinstance(self.criterion, DistillationLoss):
            size = self.cache.size if self.cache is not None else None
            with self.autocast:
                self.criterion.estimate(batch, rows, sample_rate=self.clap.sample_rate, size=size)
        if self.cache is not None and max(rows) > self.cache.size:
            parameters = [parameter for parameter in self.criterion.parameters() if parameter.requires_grad]
            options = {"rows": rows, "scaler": self.scaler}
            loss, backward = self.cache.forward(self.model, batch, loss_of, parameters, **options)
        else:
            loss = loss_of(*self.encode(self.model, batch))
            backward = self.scaler.scale(loss).backward

        def compute_gradients() -> None:
            backward()
            average_gradients(self.parameters_to_average())

        return loss.detach(), compute_gradients

    def encode(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (rows, embed_dim) of audio and text, logit scale ()."""
        with self.autocast:
            return encode_rows(model, batch)

    def parameters_to_average(self) -> list[nn.Parameter]:
        """Parameters whose gradients the backward pass does not average: of the loss, and beside a sharded encoder."""
        modules = (self.criterion, self.clap) if self.sharded else (self.criterion,)
        return [p for module in modules for p in module.parameters() if p.requires_grad and not is_sharded(p)]


def open_objective(
    clap: Clap | ClapAudioClassifier,
    criterion: nn.Module,
    dataset: ClapDataset,
    settings: TrainerSettings,
    *,
    autocast: AbstractContextManager,
    scaler: torch.amp.GradScaler,
) -> Objective | ClassificationObjective:
    """The objective of a model: of pairs of clips and captions, or of a classifier's logits and labels.

    Args:
        dataset: the training clips.
    """
    if isinstance(clap, ClapAudioClassifier):
        return ClassificationObjective(clap, criterion, dataset, settings, autocast=autocast, scaler=scaler)
    if isinstance(criterion, ClassificationLoss):
        raise ValueError(
            f"loss={type(criterion).__name__} is of a classifier, and the model is a Clap; train a ClapAudioClassifier "
            "(experiment=fine_tune_classifier), or set loss=symmetric_cross_entropy"
        )
    return Objective(clap, criterion, settings, autocast=autocast, scaler=scaler)


def check_gather(criterion: nn.Module) -> None:
    """ValueError if a loss has `gather: local` and does not accept the rows of all processes."""
    missing = ALL_ROWS - inspect.signature(criterion.forward).parameters.keys()
    if getattr(criterion, "gather", "full") == "local" and missing:
        raise ValueError(
            f"loss.gather=local, but {type(criterion).__name__}.forward has no keywords {', '.join(sorted(missing))}; "
            "add them, or set loss.gather=full"
        )

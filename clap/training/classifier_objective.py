"""The objective of a classifier: the loss of its logits, whose rows do not depend on each other."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from clap.classifier import ClapAudioClassifier
from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.folds import Folds
from clap.dataset.loader import Batch
from clap.loss import ClassificationLoss
from clap.training.parallel import (
    SILENT_SAMPLES,
    frozen_batch_norm,
    without_averaging,
    without_statistics,
    wrap_model,
)
from clap.training.trainer_settings import TrainerSettings

log = logging.getLogger(__name__)


class ClassificationObjective:
    """Computes the loss of a classifier on the global batch, of which each process has a part.

    With `trainer.micro_batch_size`, the gradients of parts of the batch are added up.

    Args:
        criterion: logits, targets (batch, classes) -> loss (), the mean over rows.
        dataset: the training clips, with a label each.
        autocast: of the encoder. scaler: of the loss, for fp16.

    Raises:
        ValueError: the loss is not one of a classifier, or the labels of the clips do not fit the classes.
    """

    def __init__(
        self,
        classifier: ClapAudioClassifier,
        criterion: nn.Module,
        dataset: ClapDataset,
        settings: TrainerSettings,
        *,
        autocast: AbstractContextManager,
        scaler: torch.amp.GradScaler,
    ) -> None:
        check_loss(classifier, criterion)
        check_labels(dataset, classifier)
        self.classifier, self.criterion, self.clips = classifier, criterion, dataset.clips
        self.autocast, self.scaler = autocast, scaler
        self.size, self.norm = settings.micro_batch_size, settings.micro_batch_norm
        self.column = {name: column for column, name in enumerate(classifier.class_names)}
        self.model: nn.Module = classifier
        classifier.trained_on = describe_training(dataset)

    def prepare(self) -> None:
        """Wrap the model for averaged gradients; again when parameters start to train."""
        self.model = wrap_model(self.classifier)

    def end_step(self) -> None:
        """Nothing to limit; see `Objective`."""

    def read_metrics(self) -> dict[str, float]:
        """No metrics of its own; see `Objective`."""
        return {}

    def forward(self, batch: Batch, rows: list[int]) -> tuple[Tensor, Callable[[], None]]:
        """The loss () of the global batch, and a function that computes it with its gradients.

        Of several processes, the loss of each is its share, whose mean over processes is the loss of the batch.

        Args:
            rows: number of clips of each rank; all ranks run the model equally often, with empty chunks if need be.
        """
        number = 1 if self.size is None else -(-max(rows) // self.size)
        size = self.size if number > 1 else len(batch)
        chunks = batch.split([min(size, max(len(batch) - start * size, 0)) for start in range(number)])
        loss = torch.zeros((), device=batch.samples.device)

        def compute_gradients() -> None:
            frozen = number > 1 and self.norm == "frozen"
            with frozen_batch_norm(self.classifier) if frozen else nullcontext():
                for position, chunk in enumerate(chunks, start=1):
                    with nullcontext() if position == number else without_averaging(self.model):
                        share = self.add_up(chunk) * (len(rows) / sum(rows))
                        self.scaler.scale(share).backward()
                    loss.add_(share.detach())

        return loss, compute_gradients

    def add_up(self, batch: Batch) -> Tensor:
        """The sum of the loss over the rows of this rank (); a rank without rows runs the model on a silent clip."""
        if not len(batch):
            silence = torch.zeros(1, SILENT_SAMPLES, device=batch.samples.device)
            with without_statistics(self.model), self.autocast:
                return 0.0 * self.model(silence, torch.tensor([SILENT_SAMPLES])).sum()
        with self.autocast:
            logits = self.model(batch.waveform, batch.lengths, batch.features)
        return self.criterion(logits.float(), self.make_targets(batch)) * len(batch)

    def make_targets(self, batch: Batch) -> Tensor:
        """Targets (rows, classes) float32; see `ClassificationLoss`."""
        targets = self.encode_labels([self.clips[i] for i in batch.index.tolist()])
        if batch.mixed_with is not None:
            partner = self.encode_labels([self.clips[i] for i in batch.mixed_with.tolist()])
            targets = self.criterion.mix_targets(targets, partner)
        return targets.to(batch.samples.device)

    def encode_labels(self, clips: Sequence[Clip]) -> Tensor:
        """1 for a class of a clip, otherwise 0, (clips, classes)."""
        targets = torch.zeros(len(clips), len(self.column))
        for row, clip in enumerate(clips):
            targets[row, [self.column[label] for label in clip.all_labels]] = 1
        return targets


def check_loss(classifier: ClapAudioClassifier, criterion: nn.Module) -> None:
    """ValueError unless a loss is of logits, and of as many classes for each clip as the classifier has."""
    if not isinstance(criterion, ClassificationLoss) or criterion.multi_label != classifier.multi_label:
        wanted = "binary_cross_entropy" if classifier.multi_label else "cross_entropy"
        raise ValueError(
            f"loss={type(criterion).__name__} does not train a classifier with multi_label={classifier.multi_label}; "
            f"set loss={wanted}"
        )


def check_labels(dataset: ClapDataset, classifier: ClapAudioClassifier) -> None:
    """Check the labels of the training clips, and log how many clips each class has.

    Raises:
        ValueError: a clip has no label, several where one is trained, or an unknown one; a class has no clip.
    """
    counts = dict.fromkeys(classifier.class_names, 0)
    bare, several = [], []
    for clip in dataset.clips:
        labels = clip.all_labels
        for label in labels:
            if label not in counts:
                raise ValueError(
                    f"training clip {clip.id} of {dataset.name} has the label {label!r}, which is not one of "
                    f"the {len(counts)} class names of the classifier; add it, or list the clip in dataset.exclude"
                )
            counts[label] += 1
        bare += [clip.id] if not labels else []
        several += [clip.id] if len(labels) > 1 else []
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(dataset.clips)} training clips of {dataset.name} have no label, the first is "
            f"{bare[0]}; add labels, or list the clips in dataset.exclude"
        )
    if several and not classifier.multi_label:
        raise ValueError(
            f"{len(several)} of {len(dataset.clips)} training clips of {dataset.name} have several labels, the first "
            f"is {several[0]}; set loss=binary_cross_entropy 'evaluation=[multi_label_classification]'"
        )
    if absent := [name for name, count in counts.items() if not count]:
        raise ValueError(
            f"no training clip of {dataset.name} has the class {absent[0]!r} ({len(absent)} such classes); add clips, "
            "or remove the class"
        )
    rarest = min(counts, key=counts.get)
    log.info("%d classes; the fewest training clips, %d, are of %s", len(counts), counts[rarest], rarest)


def describe_training(dataset: ClapDataset) -> dict[str, object]:
    """What identifies the training clips, for the protocol of an evaluation."""
    folds = {part.corpus.name: part.corpus.folds["train"] for part in dataset.parts if isinstance(part.corpus, Folds)}
    known = {"dataset": dataset.name, "clips": len(dataset.clips), "clip_manifest": dataset.digest}
    return known | ({"folds": folds} if folds else {})

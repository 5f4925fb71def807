"""Exponential moving average of the weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clap import checkpoint
from clap.evaluation.results import merge_metrics
from clap.lora import with_adapters
from clap.training.sharding import is_sharded, load_weights, shard_like

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

NAME = "ema"  # of its checkpoint


class WeightAverage:
    """The moving average of a model's parameters; buffers, as batch statistics, are those of the model.

    As of torch's AveragedModel, the average starts with the weights after the first step.

    Args:
        decay: share of the average that a step keeps; None: no average.

    Attributes:
        averages: by the name of the parameter; empty before the first step.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model, self.decay = model, decay
        self.averages: dict[str, Tensor] = {}

    def update(self) -> None:
        """Average the weights of a step."""
        if self.decay is None:
            return
        weights = self.read_weights()
        if not self.averages:
            self.averages = {name: weight.clone() for name, weight in weights.items()}
        for sharded in (False, True):  # one kernel for each
            names = [name for name, weight in weights.items() if is_sharded(weight) == sharded]
            if names:
                average = get_ema_multi_avg_fn(self.decay)
                average([self.averages[name] for name in names], [weights[name] for name in names], None)

    def read_weights(self) -> dict[str, Tensor]:
        """The parameters of the model, which are sharded after this call if they ever are."""
        weights = self.model.state_dict()
        return {name: weights[name] for name, _ in self.model.named_parameters()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights while the body runs."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        weights = self.read_weights()
        for name, average in self.averages.items():
            weight = weights[name].clone()
            weights[name].copy_(average)
            average.copy_(weight)

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Set the whole averages of a checkpoint."""
        weights = self.read_weights()
        self.averages = {
            name: shard_like(value.to(weights[name].device), weights[name]) for name, value in averages.items()
        }


def validate_average(trainer: "ClapTrainer") -> None:
    """Evaluate the average on the validation split, and write its checkpoint; it does not choose the best."""
    if trainer.ema.decay is not None:
        with trainer.ema.applied():
            if trainer.validation.has("val"):
                trainer.log_metrics(name_average(merge_metrics(trainer.evaluate("val"))))
            trainer.save(NAME)


def test_average(trainer: "ClapTrainer") -> dict[str, float]:
    """Metrics of the average's checkpoint on the test split, which the model then has as its weights."""
    if trainer.ema.decay is None or not trainer.validation.has("test"):
        return {}
    load_weights(trainer.clap, with_adapters(trainer.clap, checkpoint.read_weights(trainer.checkpoints / NAME)))
    metrics = name_average(merge_metrics(trainer.evaluate("test")))
    trainer.log_metrics(metrics)
    return metrics


def name_average(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the average by their names: `val/clotho/...` becomes `val_ema/clotho/...`."""
    return {name.replace("/", f"_{NAME}/", 1): value for name, value in metrics.items()}

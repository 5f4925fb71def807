"""Validation in training: which metrics choose the best checkpoint, and whether a validation is the best so far."""

import math
from collections.abc import Mapping

from torch.utils.data import DataLoader

from clap.evaluation.embedded_split import make_evaluation_loader
from clap.evaluation.evaluator import Evaluator, check_evaluators, evaluate_split, find_needs, is_monitor, name_metrics
from clap.evaluation.results import Evaluation, merge_metrics
from clap.model import Clap
from clap.process_group import broadcast_object
from clap.training.trainer_settings import TrainerSettings


class Validation:
    """Evaluates a model on splits, and keeps the metrics of its best validation.

    Args:
        loaders: split -> loader, None for a split that the dataset does not have.

    Attributes:
        monitors: full names of the metrics whose mean chooses the best checkpoint; none without a validation split.
        metric: the mean of the monitors of the latest validation.
        best_metric, best_metrics: the mean of the monitors, and all metrics, of the best validation.
        since_best: validations since the best one.

    Raises:
        ValueError: an evaluator cannot run on a split, or the monitor is not one of their metrics.
    """

    def __init__(
        self,
        clap: Clap,
        loaders: Mapping[str, DataLoader | None],
        evaluators: Mapping[str, Evaluator],
        settings: TrainerSettings,
    ) -> None:
        self.clap, self.evaluators = clap, evaluators
        self.other_loaders = open_other_loaders(loaders, evaluators)
        self.monitors = find_monitors(loaders["val"], evaluators, settings)
        self.metric, self.best_metric, self.best_metrics, self.since_best = -math.inf, -math.inf, {}, 0

    def evaluate(self, loader: DataLoader) -> dict[str, Evaluation]:
        return evaluate_split(self.clap, loader, self.evaluators, other_loaders=self.other_loaders)

    def update_best(self, results: Mapping[str, Evaluation]) -> bool:
        """Whether a validation is the best so far, of equal ones the later, longer trained.

        Collective: all ranks act on the metrics of rank 0, from which those of another device may differ by rounding.
        """
        metrics = broadcast_object(merge_metrics(results))
        self.metric = value = sum(metrics[name] for name in self.monitors) / len(self.monitors)
        self.since_best = 0 if value > self.best_metric else self.since_best + 1
        if value < self.best_metric:
            return False
        self.best_metric, self.best_metrics = value, metrics
        return True

    def choose_shown(self, results: Mapping[str, Evaluation], *, count: int) -> list[str]:
        """The metrics of a validation that a short line shows, by their full names.

        The monitors come first, then the first metric of each other evaluator and corpus; then metrics that have a
        chance level, one of each task (`audio_to_text/...`) before a second one.
        """
        names = [name for result in results.values() for name in self.order_metrics(result)]
        leading = [
            self.order_metrics(result)[0] for result in results.values() if not result.metrics.keys() & {*self.monitors}
        ]
        chance = {name for result in results.values() for name in result.chance}
        chosen = list(dict.fromkeys([*self.monitors, *leading]))
        others = [name for name in names if name in chance] + [name for name in names if name not in chance]
        tasks = {name.rpartition("/")[0] for name in chosen}
        for name in others:
            if (task := name.rpartition("/")[0]) not in tasks:
                tasks.add(task)
                chosen.append(name)
        return list(dict.fromkeys([*chosen, *others]))[:count]

    def order_metrics(self, result: Evaluation) -> list[str]:
        """The metrics of an evaluation in the order of `metric_names`, the leading one first."""
        evaluator, corpus = self.evaluators[result.protocol["evaluator"]], result.protocol["dataset"]
        return name_metrics(result.protocol["split"], [corpus], {"": evaluator})


def open_other_loaders(
    loaders: Mapping[str, DataLoader | None], evaluators: Mapping[str, Evaluator]
) -> dict[str, DataLoader]:
    """Loaders of the splits that evaluators need, after each has checked all that it reads."""
    needs = [kind for kind in find_needs(evaluators) if kind != "test" and loaders.get(kind) is not None]
    others = {kind: make_evaluation_loader(loaders[kind]) for kind in needs}
    for loader in filter(None, (loaders["val"], loaders["test"])):
        datasets = {kind: other.dataset for kind, other in others.items()}
        check_evaluators(loader.dataset, evaluators, datasets)
    return others


def find_monitors(
    loader: DataLoader | None, evaluators: Mapping[str, Evaluator], settings: TrainerSettings
) -> list[str]:
    """Full names of the metrics whose mean chooses the best checkpoint; none without validation."""
    monitor, patience = settings.monitor, settings.patience
    if loader is None and (monitor or patience):
        raise ValueError(
            f"trainer.monitor={monitor} and trainer.patience={patience} need a validation split, and the dataset "
            "has none; set both to null, or give a dataset with a validation split"
        )
    if loader is None:
        return []
    dataset = loader.dataset
    names = list(filter(is_monitor, name_metrics(dataset.kind, dataset.names, evaluators)))
    if monitor is not None and monitor not in names:
        raise ValueError(f"trainer.monitor={monitor} is not one of {', '.join(names)}")
    first = names[0].removeprefix(f"{dataset.kind}/{dataset.names[0]}/")
    return [monitor] if monitor else [f"{dataset.kind}/{corpus}/{first}" for corpus in dataset.names]

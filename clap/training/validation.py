"""Validation in training: which metrics choose the best checkpoint, and whether a validation is the best so far."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from clap.audio_model import AudioModel
from clap.classifier import ClapAudioClassifier
from clap.dataset.clips import ClapDataset
from clap.evaluation.classification import Classification, MultiLabelClassification
from clap.evaluation.evaluation_set import EvaluationSet, evaluate_sets
from clap.evaluation.evaluator import Evaluator, check_models, is_monitor, name_metrics
from clap.evaluation.results import Evaluation, merge_metrics
from clap.evaluation.retrieval import Retrieval
from clap.process_group import broadcast_object
from clap.training.trainer_settings import TrainerSettings


class Validation:
    """Evaluates a model on splits, and keeps the metrics of its best validation.

    Args:
        loaders: split -> loader, None for a split that the dataset does not have.
        evaluators: of the training corpora, by name, those of `choose_evaluators` if there are none; an EvaluationSet,
            by its name, is another dataset with its own evaluators.

    Attributes:
        others: the evaluation sets, by name.
        monitors: full names of the metrics whose mean chooses the best checkpoint; none without a validation split.
        metric: the mean of the monitors of the latest validation.
        best_metric, best_metrics: the mean of the monitors, and all metrics, of the best validation.
        since_best: validations since the best one.

    Raises:
        ValueError: an evaluator cannot run on a split or with the model, or the monitor is not one of their metrics.
    """

    def __init__(
        self,
        clap: AudioModel,
        loaders: Mapping[str, DataLoader | None],
        evaluators: Mapping[str, Evaluator | EvaluationSet],
        settings: TrainerSettings,
    ) -> None:
        self.clap, self.loaders = clap, loaders
        self.others = {name: item for name, item in evaluators.items() if isinstance(item, EvaluationSet)}
        self.evaluators = {name: item for name, item in evaluators.items() if name not in self.others}
        self.evaluators = self.evaluators or choose_evaluators(clap)
        self.sets = [EvaluationSet(loaders, self.evaluators), *self.others.values()]
        for found in self.sets:
            for loader in found.loaders.values():
                check_models(clap, loader.dataset, found.evaluators)
        self.monitors = find_monitors(self.sets, settings)
        self.metric, self.best_metric, self.best_metrics, self.since_best = -math.inf, -math.inf, {}, 0

    def has(self, split: str) -> bool:
        """Whether there is anything to evaluate on a split, val or test."""
        return any(split in found.loaders for found in self.sets)

    def evaluate(self, split: str) -> dict[str, Evaluation]:
        """The evaluations of a split by evaluator, or by `<dataset>/<evaluator>`; collective."""
        return self.sets[0].evaluate(self.clap, split) | evaluate_sets(self.clap, self.others, split)

    def write_reports(self, folder: Path, results: Mapping[str, Evaluation]) -> None:
        """See `evaluator.write_reports`."""
        for found in self.sets:
            found.write_reports(folder, results)

    @property
    def datasets(self) -> dict[str, ClapDataset]:
        """The splits that are trained on and evaluated, those of evaluation datasets by `<name> <split>`."""
        own = {kind: loader.dataset for kind, loader in self.loaders.items() if loader is not None}
        others = [(name, kind, loader) for name, found in self.others.items() for kind, loader in found.loaders.items()]
        return own | {f"{name} {kind}": loader.dataset for name, kind, loader in others}

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
        corpus, name = result.protocol["dataset"], result.protocol["evaluator"]
        evaluators = self.others[corpus].evaluators if corpus in self.others else self.evaluators
        return name_metrics(result.protocol["split"], [corpus], {name: evaluators[name]})


def choose_evaluators(clap: AudioModel) -> dict[str, Evaluator]:
    """Retrieval, or of a classifier its accuracy or mean average precision."""
    if not isinstance(clap, ClapAudioClassifier):
        return {"retrieval": Retrieval()}
    return {"classification": MultiLabelClassification() if clap.multi_label else Classification()}


def find_monitors(sets: Sequence[EvaluationSet], settings: TrainerSettings) -> list[str]:
    """Full names of the metrics whose mean chooses the best checkpoint; none without validation.

    Args:
        sets: that of the training corpora, then the evaluation datasets.
    """
    monitor, patience = settings.monitor, settings.patience
    names = [list(filter(is_monitor, found.name_metrics("val"))) for found in sets]
    if not any(names) and (monitor or patience):
        raise ValueError(
            f"trainer.monitor={monitor} and trainer.patience={patience} need a validation split, and the dataset "
            "has none; set both to null, or give a dataset with a validation split"
        )
    known = list(itertools.chain(*names))
    if monitor is not None and monitor not in known:
        raise ValueError(f"trainer.monitor={monitor} is not one of {', '.join(known)}")
    if monitor is not None or not known:
        return [monitor] if monitor else []
    dataset = next(found for found in sets if "val" in found.loaders).loaders["val"].dataset
    first = known[0].removeprefix(f"{dataset.kind}/{dataset.names[0]}/")
    return [f"{dataset.kind}/{corpus}/{first}" for corpus in dataset.names]

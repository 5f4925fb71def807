"""A dataset in evaluation: loaders of its splits, and the evaluators that run on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from clap.config.build import build
from clap.dataset.evaluation_options import PlannedDataset
from clap.dataset.loader import open_loader
from clap.evaluation.embedded_split import make_evaluation_loader
from clap.evaluation.evaluator import (
    Evaluator,
    check_evaluators,
    evaluate_split,
    find_needs,
    name_metrics,
    write_reports,
)
from clap.evaluation.results import Evaluation

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap


class EvaluationSet:
    """The splits of a dataset that are evaluated, and its evaluators.

    Args:
        loaders: split -> loader, None for a split that the dataset does not have.

    Raises:
        ValueError: an evaluator cannot run on a split.
    """

    def __init__(self, loaders: Mapping[str, DataLoader | None], evaluators: Mapping[str, Evaluator]) -> None:
        self.loaders = {kind: loaders[kind] for kind in ("val", "test") if loaders.get(kind) is not None}
        self.evaluators = dict(evaluators)
        needs = [kind for kind in find_needs(evaluators) if kind != "test" and loaders.get(kind) is not None]
        self.other_loaders = {kind: make_evaluation_loader(loaders[kind]) for kind in needs}
        for loader in self.loaders.values():
            datasets = {kind: other.dataset for kind, other in self.other_loaders.items()}
            check_evaluators(loader.dataset, evaluators, datasets)

    def evaluate(self, clap: "Clap", split: str) -> dict[str, Evaluation]:
        """See `evaluate_split`; empty if the dataset does not have the split."""
        if split not in self.loaders:
            return {}
        return evaluate_split(clap, self.loaders[split], self.evaluators, other_loaders=self.other_loaders)

    def name_metrics(self, split: str) -> list[str]:
        """Full names of the metrics of a split, the leading one first."""
        if split not in self.loaders:
            return []
        dataset = self.loaders[split].dataset
        return name_metrics(dataset.kind, dataset.names, self.evaluators)

    def write_reports(self, folder: Path, results: Mapping[str, Evaluation]) -> None:
        """The tables and pictures of those results that are of this dataset."""
        names = {name for loader in self.loaders.values() for name in loader.dataset.names}
        own = {key: result for key, result in results.items() if result.protocol["dataset"] in names}
        write_reports(folder, own, self.evaluators)


def evaluate_sets(clap: "Clap", sets: Mapping[str, EvaluationSet], split: str) -> dict[str, Evaluation]:
    """The evaluations of several datasets that have the split, by `<name>/<evaluator>`."""
    results = {name: found.evaluate(clap, split) for name, found in sets.items()}
    return {f"{name}/{key}": result for name, own in results.items() for key, result in own.items()}


@dataclass(frozen=True)
class EvaluationDataset:
    """A corpus of the key `evaluation_datasets`, whose splits are opened when the model is known."""

    plan: PlannedDataset
    evaluators: dict[str, Evaluator]

    @classmethod
    def build(cls, plan: PlannedDataset) -> "EvaluationDataset":
        return cls(plan, {name: build(node, Evaluator) for name, node in plan.evaluation.items()})

    def name_metrics(self, split: str) -> list[str]:
        """Full names of the metrics of a split."""
        names = [self.plan.corpus.name] if split in self.plan.splits else []
        return name_metrics(split, names, self.evaluators)

    def open(self, **input_format: Any) -> EvaluationSet:
        """Its splits as a model reads them.

        Args:
            input_format: `input_format` of the model.
        """
        kinds = [*(("train",) if "train" in find_needs(self.evaluators) else ()), *self.plan.splits]
        options = {"settings": self.plan.settings, "training": False}
        loaders = {kind: open_loader(self.plan.corpus, kind, **options, **input_format) for kind in kinds}
        return EvaluationSet(loaders, self.evaluators)

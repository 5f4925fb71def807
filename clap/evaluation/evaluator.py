"""The evaluator contract, and how evaluators run on a split: in training's validation and in evaluate.py alike."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from clap.atomic import read_json, write_json
from clap.dataset.clips import ClapDataset
from clap.evaluation.embedded_split import EmbeddedSplit, embed_split
from clap.evaluation.protocol import describe_split, hash_protocol
from clap.model import Clap

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What an evaluator found: numbers, per-query values beside the ids of their clips, and what the numbers mean."""

    metrics: dict[str, float]
    per_query: dict[str, np.ndarray]
    protocol: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Called on a model and an embedded split; the first of `metric_names` chooses the best checkpoint."""

    name: str
    metric_names: tuple[str, ...]

    def check(self, dataset: ClapDataset) -> None:
        """Refuse a dataset that it cannot evaluate, before anything is trained or embedded."""

    def __call__(self, clap: Clap, split: EmbeddedSplit) -> Evaluation:
        raise NotImplementedError


def check_evaluators(dataset: ClapDataset, evaluators: Mapping[str, Evaluator]) -> None:
    """Have every evaluator look at the split of each corpus.

    Raises:
        ValueError: one of them cannot evaluate it.
    """
    for part, _ in dataset.by_corpus:
        for evaluator in evaluators.values():
            evaluator.check(part)


def name_metrics(dataset: ClapDataset, evaluators: Mapping[str, Evaluator]) -> list[str]:
    """Full names of the metrics that evaluators find on a dataset, `<split>/<dataset>/<metric>`."""
    names = [name for evaluator in evaluators.values() for name in evaluator.metric_names]
    return [f"{dataset.kind}/{corpus}/{name}" for corpus in dataset.names for name in names]


def evaluate(clap: Clap, loader: DataLoader, evaluators: Mapping[str, Evaluator]) -> dict[str, Evaluation]:
    """Run every evaluator on one split of each corpus; metric names get `<split>/<dataset>/` in front.

    The results are by evaluator, or by `<dataset>/<evaluator>` where there are several corpora.
    """
    check_evaluators(loader.dataset, evaluators)
    clap.tokenizer.cache_captions(loader.dataset.captions)
    parts = embed_split(clap, loader).by_corpus()
    results = {}
    with clap.inference():
        for split in parts:
            prefix = f"{split.dataset.kind}/{split.dataset.name}"
            for name, evaluator in evaluators.items():
                result = evaluator(clap, split)
                metrics = {f"{prefix}/{key}": value for key, value in result.metrics.items()}
                protocol = describe_split(clap, split) | {"evaluator": name} | result.protocol
                protocol = {"hash": hash_protocol(protocol)} | protocol
                key = name if len(parts) == 1 else f"{split.dataset.name}/{name}"
                results[key] = Evaluation(metrics, result.per_query, protocol)
    return results


def write_results(folder: Path, results: Mapping[str, Evaluation]) -> None:
    """Per-query values as <split>-<dataset>-<evaluator>.npz, and protocol.json, which keeps what other splits wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "protocol.json"
    protocols = read_json(path)
    for name, result in results.items():
        evaluator = name.rpartition("/")[2]
        stem = f"{result.protocol['split']}-{result.protocol['dataset']}-{evaluator}"
        np.savez_compressed(folder / f"{stem}.npz", **result.per_query)
        protocols[stem] = result.protocol
    write_json(path, protocols)


def merge_metrics(results: Mapping[str, Evaluation]) -> dict[str, float]:
    return {name: value for result in results.values() for name, value in result.metrics.items()}

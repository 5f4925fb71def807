"""Scores of runs side by side: one metric, one protocol, and what every clip contributes to a run's number."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clap.evaluation.metrics import average_precisions_at

TASKS = {  # task in a metric's name: the per-query values that its evaluator writes
    "text_to_audio": "text_to_audio_rank",
    "audio_to_text": "audio_to_text_best_rank",
    "zero_shot": "hit",
}
AVERAGE_PRECISION = "mean_average_precision_at_10"
TOLERANCE = 1e-6  # between a metric in MLflow and the mean of its per-query values
SHOWN_RUNS, SHOWN_CHARACTERS = 3, 60  # in an error about protocols


@dataclass(frozen=True)
class Recorded:
    """What one evaluator left of a run: its protocol and per-query values."""

    protocol: dict[str, Any]
    per_query: dict[str, np.ndarray]


@dataclass(frozen=True)
class RunScores:
    """What a run has of a metric: name for messages, number, and all that its evaluators left."""

    name: str
    value: float
    recorded: Sequence[Recorded]


@dataclass(frozen=True)
class Score:
    """One metric of one run; totals and counts (clips,) over a clip's queries, None without a value a clip."""

    value: float
    totals: np.ndarray | None = None
    counts: np.ndarray | None = None


@dataclass
class Column:
    """One metric over all finished runs, all under one protocol.

    Attributes:
        protocol: what the numbers mean; None for a metric that no evaluator made, such as train/loss.
        scores: run id -> score.
    """

    metric: str
    protocol: dict[str, Any] | None
    scores: dict[str, Score]

    @property
    def label(self) -> str:
        """The metric in a reader's words."""
        return label_metric(self.metric)

    @property
    def counts(self) -> np.ndarray | None:
        """(clips,) queries of each clip, the same for all runs; None without values a clip."""
        return next(iter(self.scores.values())).counts

    def matrix(self, run_ids: Sequence[str]) -> np.ndarray:
        """(runs, clips) mean score of a clip's queries, or (runs,) where the metric has no value a clip."""
        scores = [self.scores[run_id] for run_id in run_ids]
        if self.counts is None:
            return np.array([score.value for score in scores])
        return np.stack([score.totals / score.counts for score in scores])


def label_metric(metric: str) -> str:
    """`test/clotho/text_to_audio/recall_at_1` -> `text-to-audio recall@1`."""
    *_, task, name = ["", *metric.split("/")]
    name = name.replace("mean_average_precision", "mAP").replace("_at_", "@").replace("_", " ")
    return f"{task.replace('_', '-')} {name}".strip()


def make_column(metric: str, runs: Mapping[str, RunScores]) -> Column:
    """Scores of all runs (run id -> what it has), after it is sure that they mean the same.

    Raises:
        ValueError: protocols, clips or numbers do not belong together.
    """
    if metric.split("/")[0] not in ("test", "val"):
        return Column(metric, None, {run_id: Score(run.value) for run_id, run in runs.items()})
    recorded = {run.name: find_recorded(metric, run) for run in runs.values()}
    assert len(recorded) == len(runs), "a job's name tells its levels and seed, so no two runs share one"
    check_protocols(metric, {name: found.protocol for name, found in recorded.items()})
    check_clips(metric, {name: found.per_query for name, found in recorded.items()})
    scores = {run_id: score_clips(metric, run, recorded[run.name].per_query) for run_id, run in runs.items()}
    return Column(metric, next(iter(recorded.values())).protocol, scores)


def find_recorded(metric: str, run: RunScores) -> Recorded:
    """The evaluation that a metric `<split>/<dataset>/<task>/<name>` comes from."""
    split, *dataset, task, _ = metric.split("/")
    for recorded in run.recorded:
        where = recorded.protocol["split"], recorded.protocol["dataset"]
        if where == (split, "/".join(dataset)) and TASKS.get(task) in recorded.per_query:
            return recorded
    raise ValueError(f"run {run.name} has the metric {metric}, but none of its evaluation/*.npz has its queries")


def check_protocols(metric: str, protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse numbers of different protocols; run name -> protocol."""
    if len({protocol["hash"] for protocol in protocols.values()}) == 1:
        return
    fields = list(dict.fromkeys(field for protocol in protocols.values() for field in protocol if field != "hash"))
    told = [differing(field, protocols) for field in fields]
    told = "; ".join(filter(None, told)) or differing("hash", protocols)
    raise ValueError(
        f"{metric}: runs of different protocols do not stand in one column: {told}; name a sweep of one protocol with "
        "--sweep RUN_ID, or run the study anew with hydra.sweep.dir=FOLDER"
    )


def differing(field: str, protocols: Mapping[str, Mapping[str, Any]]) -> str:
    """`code_version is "0.1" in a-s0, "0.2" in b-s0`; nothing where all agree."""
    values = {name: protocol.get(field, "absent") for name, protocol in protocols.items()}
    if all(isinstance(value, list) for value in values.values()):
        first, *rest = values.values()
        common = [item for item in first if all(item in value for value in rest)]
        uncommon = {name: [item for item in value if item not in common] for name, value in values.items()}
        values = uncommon if any(uncommon.values()) else values
    names = defaultdict(list)
    for name, value in values.items():
        names[json.dumps(value, sort_keys=True, ensure_ascii=False)].append(name)
    parts = [f"{cut(value, SHOWN_CHARACTERS)} in {list_some(some)}" for value, some in names.items()]
    return f"{field} is {', '.join(parts)}" if len(parts) > 1 else ""


def cut(text: str, length: int) -> str:
    """Text of at most so many characters, and a mark where more were."""
    return text if len(text) <= length else f"{text[:length].rstrip()}…"


def list_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - SHOWN_RUNS
    return " ".join(names[:SHOWN_RUNS]) + (f" and {rest} more" if rest > 0 else "")


def check_clips(metric: str, runs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Refuse runs whose clips or their numbers of queries differ; run name -> per-query values."""
    first, *others = runs
    for other in others:
        for key in ("clip_id", "text_clip"):
            if not np.array_equal(runs[first].get(key, ()), runs[other].get(key, ())):
                raise ValueError(
                    f"{metric}: {first} and {other} have one protocol but differ in {key}, so their clips do not "
                    "pair; run the study anew with hydra.sweep.dir=FOLDER"
                )


def score_clips(metric: str, run: RunScores, per_query: Mapping[str, np.ndarray]) -> Score:
    """A run's number with what every clip contributes to it, where that is defined."""
    found = sum_queries(metric, per_query)
    if found is None or len(found[0]) < 2:
        return Score(run.value)
    totals, counts = found
    if abs(totals.sum() / counts.sum() - run.value) > TOLERANCE:
        raise ValueError(
            f"run {run.name} has {metric}={run.value:.6f} in MLflow, but its evaluation/*.npz gives "
            f"{totals.sum() / counts.sum():.6f}; its artifacts belong to another evaluation, train it again"
        )
    return Score(run.value, totals, counts)


def sum_queries(metric: str, per_query: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """totals and counts (clips,) of a metric's queries by clip; None for a metric that is no mean over queries."""
    task, name = metric.split("/")[-2:]
    num_clips = len(per_query["clip_id"])
    clips = np.arange(num_clips)  # of each query
    if task == "zero_shot":
        values = per_query["hit"].astype(float) if name == "accuracy" else None
    elif task == "text_to_audio":
        clips, values = per_query["text_clip"], score_ranks(name, per_query["text_to_audio_rank"])
    elif name == AVERAGE_PRECISION:
        ranks, queries = (torch.from_numpy(per_query[key]) for key in ("audio_to_text_rank", "text_clip"))
        values = average_precisions_at(ranks, queries, 10).numpy()
    else:
        values = score_ranks(name, per_query["audio_to_text_best_rank"])
    if values is None:
        return None
    return np.bincount(clips, values, num_clips), np.bincount(clips, minlength=num_clips).astype(float)


def score_ranks(name: str, ranks: np.ndarray) -> np.ndarray | None:
    """(queries,) in [0, 1] from ranks that start at 1, with one relevant item a query."""
    if name == AVERAGE_PRECISION:
        return np.where(ranks <= 10, 1 / ranks, 0.0)
    recall = re.fullmatch(r"recall_at_(\d+)", name)
    return (ranks <= int(recall[1])).astype(float) if recall else None

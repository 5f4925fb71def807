"""Scores of runs side by side: one metric under one protocol, and the scores of each clip behind a run's number."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clap.evaluation.results import NOT_IN_HASH, TOLERANCE, RecordedEvaluation, is_earlier

SHOWN_RUNS, SHOWN_CHARACTERS = 3, 60  # in an error about protocols


@dataclass(frozen=True)
class RunScores:
    """One metric of a run, and its recorded evaluations, one of which declares the metric.

    Attributes:
        name: of the run, for messages.
        value: of the metric in MLflow.
    """

    name: str
    value: float
    evaluations: Sequence[RecordedEvaluation]


@dataclass(frozen=True)
class Score:
    """One metric of one run.

    Attributes:
        totals: (clips,) sum over a clip's queries; None for a metric without per-query scores.
        counts: (clips,) queries of each clip, likewise.
    """

    value: float
    totals: np.ndarray | None = None
    counts: np.ndarray | None = None


@dataclass
class Column:
    """One metric over all finished runs, all under one protocol.

    Attributes:
        protocol: of the evaluation; None for a metric that no evaluator computes, such as train/loss.
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
        """(clips,) queries of each clip, the same for all runs; None without per-query scores."""
        return next(iter(self.scores.values())).counts

    def matrix(self, run_ids: Sequence[str]) -> np.ndarray:
        """(runs, clips) mean score of a clip's queries, or (runs,) for a metric without per-query scores."""
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
    """Scores of all runs, after a check that they are comparable.

    Args:
        runs: run id -> its scores.

    Raises:
        ValueError: protocols, clips or numbers do not belong together.
    """
    if metric.split("/")[0] not in ("test", "val"):
        return Column(metric, None, {run_id: Score(run.value) for run_id, run in runs.items()})
    found = {run.name: find_evaluation(metric, run) for run in runs.values()}
    assert len(found) == len(runs), "a job's name holds its levels and seed, so no two runs share one"
    check_protocols(metric, {name: evaluation.protocol for name, evaluation in found.items()})
    check_clips(metric, found)
    order = {clip_id: row for row, clip_id in enumerate(next(iter(found.values())).clip_ids.tolist())}
    scores = {run_id: sum_by_clip(metric, run, found[run.name], order) for run_id, run in runs.items()}
    if any(score.counts is None for score in scores.values()):
        scores = {run_id: Score(score.value) for run_id, score in scores.items()}
    return Column(metric, next(iter(found.values())).protocol, scores)


def find_evaluation(metric: str, run: RunScores) -> RecordedEvaluation:
    """The evaluation that declares a metric."""
    for evaluation in run.evaluations:
        if metric in evaluation.metrics:
            return evaluation
    raise ValueError(
        f"run {run.name} has the metric {metric}, but none of its evaluation/*.npz declares it; train the run again"
    )


def check_protocols(metric: str, protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse numbers of different protocols; run name -> protocol."""
    if len({protocol["hash"] for protocol in protocols.values()}) == 1:
        return
    fields = list(dict.fromkeys(field for protocol in protocols.values() for field in protocol))
    fields = [field for field in fields if field not in NOT_IN_HASH]
    differences = "; ".join(filter(None, (describe_difference(field, protocols) for field in fields)))
    differences = differences or describe_difference("hash", protocols)
    earlier = [name for name, protocol in protocols.items() if is_earlier(protocol)]
    if 0 < len(earlier) < len(protocols):
        differences = (
            f"an earlier version, which did not record the audio, evaluated {list_some(earlier)}; {differences}"
        )
    raise ValueError(
        f"{metric}: runs of different protocols are not comparable: {differences}; name a sweep of one protocol with "
        "--sweep RUN_ID, or run the study from scratch with hydra.sweep.dir=FOLDER"
    )


def describe_difference(field: str, protocols: Mapping[str, Mapping[str, Any]]) -> str:
    """`code_version is "0.1" in a-s0, "0.2" in b-s0`; empty if all agree."""
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
    """The first few names, and the number of the others."""
    rest = len(names) - SHOWN_RUNS
    return " ".join(names[:SHOWN_RUNS]) + (f" and {rest} more" if rest > 0 else "")


def check_clips(metric: str, evaluations: Mapping[str, RecordedEvaluation]) -> None:
    """Refuse runs whose clips, or the clips of whose queries, differ; run name -> evaluation."""
    (first, reference), *others = evaluations.items()
    for other, evaluation in others:
        pairs = {"clip_id": [reference.clip_ids, evaluation.clip_ids]}
        if metric in reference.scores and metric in evaluation.scores:
            pairs["the clips of their queries"] = [
                recorded.clip_ids[recorded.scores[metric].clips] for recorded in (reference, evaluation)
            ]
        for name, pair in pairs.items():
            if not np.array_equal(*map(np.sort, pair)):  # the order of an index changes no number
                raise ValueError(
                    f"{metric}: {first} and {other} have one protocol but differ in {name}, so their clips do not "
                    "pair; run the study from scratch with hydra.sweep.dir=FOLDER"
                )


def sum_by_clip(metric: str, run: RunScores, evaluation: RecordedEvaluation, order: Mapping[str, int]) -> Score:
    """A run's number with the sum and number of each clip's queries, of clips that have any, in order of clip ids.

    Without them where the metric has no per-query scores, or all are of one clip.

    Args:
        order: clip id -> place.
    """
    scores = evaluation.scores.get(metric)
    if scores is None:
        return Score(run.value)
    if not np.isclose(scores.mean, run.value, rtol=TOLERANCE, atol=TOLERANCE):
        raise ValueError(
            f"run {run.name} has {metric}={run.value:.6f} in MLflow, but its evaluation/*.npz gives "
            f"{scores.mean:.6f}; its artifacts belong to another evaluation, train it again"
        )
    places = np.array([order[clip_id] for clip_id in evaluation.clip_ids.tolist()])
    clips, rows = np.unique(places[scores.clips], return_inverse=True)
    if len(clips) < 2:
        return Score(run.value)
    return Score(run.value, np.bincount(rows, scores.values), np.bincount(rows).astype(float))

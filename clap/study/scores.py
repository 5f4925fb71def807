"""Scores of runs side by side: one metric under one protocol, and the scores of each clip behind a run's number.

A replicate is one training of a configuration: a run, or in a cross-validation the runs of all folds with one seed,
whose value is the unweighted mean over folds.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clap.evaluation.metric_names import lower_is_better
from clap.evaluation.results import (
    NOT_IN_HASH,
    TOLERANCE,
    RecordedEvaluation,
    hash_protocol,
    is_earlier,
    label_metric,
)
from clap.proportion import clip_interval
from clap.study.statistics import (
    MIN_SEEDS,
    Comparison,
    Interval,
    compare,
    compare_folds,
    fold_interval,
    seed_interval,
)
from clap.text_table import shorten

Replicate = Sequence[str]  # run ids, one for each fold; a single one without folds
TEST_FOLDS = "test_folds"  # key of the protocol of a cross-validation: fold -> its protocol
CLIP_COUNTS = ("published_clips", "clips_with_label")  # keys of a protocol, to be added up over folds
CLIP_KEYS = (  # keys of a protocol in which the folds of a cross-validation may differ
    *("clips", "clip_manifest", "audio_manifest", "left_out", "cached_in_16_bits", "other_splits", "trained_on"),
    *CLIP_COUNTS,
)
SHOWN_RUNS, SHOWN_CHARACTERS = 3, 60  # in an error about protocols


@dataclass(frozen=True)
class RunScores:
    """One metric of a run, and its recorded evaluations, one of which declares the metric.

    Attributes:
        name: of the run, for messages.
        value: of the metric in MLflow.
        fold: the tested fold of a cross-validation.
    """

    name: str
    value: float
    evaluations: Sequence[RecordedEvaluation]
    fold: str | None = None


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


@dataclass(frozen=True)
class Estimate:
    """The number of a configuration.

    Attributes:
        interval: of 95 %, over seeds or folds; None if there are fewer than three of both.
        deviation: standard deviation over folds, or over seeds without folds; None for a single number.
    """

    mean: float
    interval: Interval | None = None
    deviation: float | None = None


@dataclass
class Column:
    """One metric over all finished runs, all under one protocol, or one for each fold.

    Attributes:
        protocol: of the evaluation; None for a metric that no evaluator computes, such as train/loss.
        scores: run id -> score.
        chance: chance level of the metric, the mean over folds; None if it has none.
        is_proportion: whether all per-query scores are from 0 to 1; intervals then stay in this range.
    """

    metric: str
    protocol: dict[str, Any] | None
    scores: dict[str, Score]
    chance: float | None = None
    is_proportion: bool = False

    @property
    def label(self) -> str:
        """The metric in a reader's words."""
        return label_metric(self.metric)

    @property
    def has_clips(self) -> bool:
        """Whether the runs have per-query scores."""
        return all(score.counts is not None for score in self.scores.values())

    def value(self, replicate: Replicate) -> float:
        """The number of a replicate."""
        return float(self.fold_values([replicate]).mean())

    def fold_values(self, replicates: Sequence[Replicate]) -> np.ndarray:
        """(replicates, folds) numbers of the runs."""
        return np.array([[self.scores[run_id].value for run_id in replicate] for replicate in replicates])

    def matrix(self, replicates: Sequence[Replicate]) -> np.ndarray:
        """(replicates, clips) mean score of a clip's queries, or (replicates,) for a metric without per-query scores.

        The clips of a cross-validation are those of all folds.
        """
        if not self.has_clips:
            return self.fold_values(replicates).mean(axis=1)
        scores = [[self.scores[run_id] for run_id in replicate] for replicate in replicates]
        return np.stack([np.concatenate([fold.totals / fold.counts for fold in folds]) for folds in scores])

    def weights(self, replicate: Replicate) -> np.ndarray | None:
        """(clips,) weight of each clip: its queries, so that all folds have equal weight; None without clips."""
        if not self.has_clips:
            return None
        counts = [self.scores[run_id].counts for run_id in replicate]
        return counts[0] if len(counts) == 1 else np.concatenate([fold / fold.sum() for fold in counts])

    def estimate(self, *configurations: Sequence[Replicate]) -> Estimate:
        """The number of a configuration, or the mean over several that have the same seeds."""
        folds = np.mean([self.fold_values(replicates) for replicates in configurations], axis=0)  # (seeds, folds)
        interval = None
        if len(folds) >= MIN_SEEDS:
            matrix = np.mean([self.matrix(replicates) for replicates in configurations], axis=0)
            interval = seed_interval(matrix, self.weights(configurations[0][0]))
        elif folds.shape[1] > 1:
            interval = fold_interval(folds.mean(axis=0))
        if interval and self.is_proportion:
            interval = interval.clip(0.0, 1.0)
        parts = folds.mean(axis=0) if folds.shape[1] > 1 else folds[:, 0]
        return Estimate(float(folds.mean()), interval, float(parts.std(ddof=1)) if len(parts) > 1 else None)

    def compare(self, baseline: Sequence[Replicate], other: Sequence[Replicate]) -> Comparison:
        """Difference of two configurations, paired by seed and clip, or below three seeds by fold."""
        if len(baseline) < MIN_SEEDS and len(baseline[0]) > 1:
            found = compare_folds(*(self.fold_values(replicates).mean(axis=0) for replicates in (baseline, other)))
        else:
            found = compare(self.matrix(baseline), self.matrix(other), self.weights(baseline[0]))
        return (
            replace(found, interval=found.interval.clip(-1.0, 1.0)) if found.interval and self.is_proportion else found
        )

    def is_above_chance(self, replicates: Sequence[Replicate]) -> bool | None:
        """Whether the interval of a configuration, or without one that of any run over clips, is better than chance.

        None if there is no chance level or no interval.
        """
        if self.chance is None:
            return None
        scores = [self.scores[run_id] for replicate in replicates for run_id in replicate]
        interval = self.estimate(replicates).interval
        found = (
            [interval]
            if interval
            else [clip_interval(score.totals, score.counts) for score in scores if score.counts is not None]
        )
        if lower_is_better(self.metric):
            return any(one.high < self.chance for one in found) if found else None
        return any(one.low > self.chance for one in found) if found else None

    def clip_intervals(self) -> dict[str, Interval]:
        """Run id -> interval of its score over clips; empty for a metric without per-query scores."""
        if not self.has_clips:
            return {}
        return {run_id: clip_interval(score.totals, score.counts) for run_id, score in self.scores.items()}


def describe_chance(numbers: Sequence[tuple[Column, Sequence[Replicate]]]) -> str:
    """A warning if no configuration is above the chance level of a metric; empty otherwise.

    Args:
        numbers: column and replicates of each configuration.
    """
    if not numbers or any(column.is_above_chance(own) is not False for column, own in numbers):
        return ""
    which = "No configuration is" if len(numbers) > 1 else "The configuration is not"
    levels, column = [column.chance for column, _ in numbers], numbers[0][0]
    chance = " to ".join(dict.fromkeys(f"{level:.3f}" for level in (min(levels), max(levels))))
    better, begins = (
        ("below", "ends at or above") if lower_is_better(column.metric) else ("above", "begins at or below")
    )
    return (
        f"{which} {better} chance in {column.label}: every 95 % interval {begins} the chance level of "
        f"{chance}, so this metric ranks nothing."
    )


def make_column(metric: str, runs: Mapping[str, RunScores]) -> Column:
    """Scores of all runs, after a check that they are comparable.

    Args:
        runs: run id -> its scores.

    Raises:
        ValueError: protocols, clips or numbers do not belong together, or a number is not finite.
    """
    check_finite(metric, runs.values())
    if metric.split("/")[0] not in ("test", "val"):
        return Column(metric, None, {run_id: Score(run.value) for run_id, run in runs.items()})
    found = {run_id: find_evaluation(metric, run) for run_id, run in runs.items()}
    counts = Counter(run.name for run in runs.values())  # checkpoints of one name in two folders give jobs of one name
    names = {run_id: run.name if counts[run.name] == 1 else f"{run.name} ({run_id})" for run_id, run in runs.items()}
    scores, protocols = {}, {}
    for fold in dict.fromkeys(run.fold for run in runs.values()):
        own = {run_id: run for run_id, run in runs.items() if run.fold == fold}
        evaluations = {names[run_id]: found[run_id] for run_id in own}
        check_protocols(metric, {name: evaluation.protocol for name, evaluation in evaluations.items()})
        check_clips(metric, evaluations)
        first = next(iter(evaluations.values()))
        order = {clip_id: row for row, clip_id in enumerate(first.clip_ids.tolist())}
        scores |= {run_id: sum_by_clip(metric, run, found[run_id], order) for run_id, run in own.items()}
        protocols[fold] = first.protocol
    if any(score.counts is None for score in scores.values()):
        scores = {run_id: Score(score.value) for run_id, score in scores.items()}
    chances = [protocol.get("chance", {}).get(metric) for protocol in protocols.values()]
    values = [evaluation.scores[metric].values for evaluation in found.values() if metric in evaluation.scores]
    return Column(
        metric,
        combine_protocols(metric, protocols),
        {run_id: scores[run_id] for run_id in runs},
        chance=None if None in chances else sum(chances) / len(chances),
        is_proportion=bool(values) and all(0 <= own.min() and own.max() <= 1 for own in values),
    )


def check_finite(metric: str, runs: Iterable[RunScores]) -> None:
    """Refuse numbers that have no mean."""
    if bad := [run for run in runs if not np.isfinite(run.value)]:
        raise ValueError(
            f"{metric} is {bad[0].value} in {list_some([run.name for run in bad])}, which has no mean; look for the "
            "cause in the log of the run, and run it again"
        )


def combine_protocols(metric: str, protocols: Mapping[str | None, Mapping[str, Any]]) -> dict[str, Any]:
    """The protocol of a cross-validation, with a hash of its own and those of the folds; that of a single fold is kept.

    Args:
        protocols: fold -> protocol.

    Raises:
        ValueError: the folds differ in more than their clips.
    """
    if len(protocols) == 1:
        return dict(next(iter(protocols.values())))
    varying = {
        "hash",
        *CLIP_KEYS,
        *(key for key in next(iter(protocols.values())) if is_count(key, protocols.values())),
    }
    common = {
        f"fold {fold}": {key: value for key, value in protocol.items() if key not in varying}
        for fold, protocol in protocols.items()
    }
    if len(set(map(hash_protocol, common.values()))) > 1:
        raise ValueError(
            f"{metric}: the folds of a cross-validation must differ in nothing but their clips, but "
            f"{describe_differences(common)}; run it without "
            "dataset.max_clips, with hydra.sweep.dir=FOLDER"
        )
    clips = np.array([[int(number) for number in own["clips"].split(" of ")] for own in protocols.values()]).sum(axis=0)
    known = [key for key in CLIP_COUNTS if all(key in protocol for protocol in protocols.values())]
    hashes = " ".join(sorted(protocol["hash"] for protocol in protocols.values()))
    return {
        "hash": hashlib.sha256(hashes.encode()).hexdigest()[:12],
        **next(iter(common.values())),
        "clips": f"{clips[0]} of {clips[1]}",
        **{key: sum(protocol[key] for protocol in protocols.values()) for key in known},
        TEST_FOLDS: protocols,
    }


def is_count(key: str, protocols: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a key of an evaluator counts something, such as the recordings that a probe is fitted to."""
    return not key.endswith("definition") and all(type(protocol.get(key)) is int for protocol in protocols)


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
    differences = describe_differences(protocols) or describe_difference("hash", protocols)
    earlier = [name for name, protocol in protocols.items() if is_earlier(protocol)]
    if 0 < len(earlier) < len(protocols):
        differences = (
            f"an earlier version, which did not record the audio, evaluated {list_some(earlier)}; {differences}"
        )
    raise ValueError(
        f"{metric}: runs of different protocols are not comparable: {differences}; name a sweep of one protocol with "
        "--sweep RUN_ID, or run the study from scratch with hydra.sweep.dir=FOLDER"
    )


def describe_differences(protocols: Mapping[str, Mapping[str, Any]]) -> str:
    """All fields in which protocols differ; run name -> protocol."""
    fields = dict.fromkeys(field for protocol in protocols.values() for field in protocol if field not in NOT_IN_HASH)
    return "; ".join(filter(None, (describe_difference(field, protocols) for field in fields)))


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
    parts = [f"{shorten(value, SHOWN_CHARACTERS)} in {list_some(some)}" for value, some in names.items()]
    return f"{field} is {', '.join(parts)}" if len(parts) > 1 else ""


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

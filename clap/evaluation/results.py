"""What an evaluator returns, and its files in a run folder.

evaluation/<split>-<dataset>-<evaluator>.npz holds the ids of the clips, `clip_id` (clips,), the evaluator's own
per-query arrays, and in one form for every evaluator: `metrics`, the names of all its metrics, and for each metric that
is a mean over queries `scores/<metric>` and `clips/<metric>` (queries,). evaluation/protocol.json holds the protocols,
with the chance level of each metric that has one. Tables and pictures of an evaluator are in a folder of that name.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clap.atomic import read_json, write_atomic, write_json
from clap.evaluation.legacy_scores import read_legacy_scores
from clap.evaluation.query_scores import QueryScores
from clap.run_folder import PROTOCOL

SHORT_WORDS = {"mean_average_precision": "mAP", "mean_reciprocal_rank": "MRR", "ndcg": "nDCG", "_at_": "@"}
TOLERANCE = 1e-6  # absolute and relative, between a metric and the mean of its per-query scores
NOT_IN_HASH = ("hash", "recorded_by", "chance", "definitions", "leak_check", "trained_on")  # keys of a protocol


@dataclass
class Evaluation:
    """Metrics of one evaluator on one split, with their per-query scores.

    Attributes:
        metrics: name -> number.
        clip_ids: (clips,) of the clips that are evaluated.
        scores: per-query scores of the metrics that are means over queries.
        per_query: further arrays to store, by name.
        protocol: prompts and definitions behind the metrics.
        chance: metric -> its expected value for a random order of the candidates, of metrics that have one.

    Raises:
        ValueError: scores of a metric are not those of its number, or of other clips than `clip_ids`.
    """

    metrics: dict[str, float]
    clip_ids: Sequence[str]
    scores: dict[str, QueryScores] = field(default_factory=dict)
    per_query: dict[str, np.ndarray] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(self.chance.keys() - self.metrics.keys()):
            raise ValueError(f"chance has {unknown[0]}, which is not one of the metrics {', '.join(self.metrics)}")
        for metric, scores in self.scores.items():
            if not np.isclose(scores.mean, self.metrics.get(metric, np.nan), rtol=TOLERANCE, atol=TOLERANCE):
                raise ValueError(
                    f"scores of {metric} have the mean {scores.mean:.6f}, the metric is {self.metrics.get(metric)}; "
                    "give scores to metrics that are means over queries, and no others"
                )
            if scores.clips.min() < 0 or scores.clips.max() >= len(self.clip_ids):
                raise ValueError(
                    f"scores of {metric} are of clips {scores.clips.min()} to {scores.clips.max()}; clip_ids has the "
                    f"rows 0 to {len(self.clip_ids) - 1}"
                )


@dataclass
class RecordedEvaluation:
    """An evaluation read from its files: names of metrics, ids of clips (clips,), per-query scores, protocol."""

    metrics: tuple[str, ...]
    clip_ids: np.ndarray
    scores: dict[str, QueryScores]
    protocol: dict[str, Any]


def merge_metrics(results: Mapping[str, Evaluation]) -> dict[str, float]:
    """Metrics of all evaluators by their full names."""
    return {name: value for result in results.values() for name, value in result.metrics.items()}


def label_metric(metric: str) -> str:
    """`test/clotho/text_to_audio/recall_at_1` -> `text-to-audio recall@1`: a metric in a reader's words."""
    *tasks, name = metric.split("/")[2:] or metric.split("/")
    for word, short in SHORT_WORDS.items():
        name = name.replace(word, short)
    name = name.replace("_", " ")
    return " ".join([*(task.replace("_", "-") for task in tasks), name])


def write_results(folder: Path, results: Mapping[str, Evaluation]) -> None:
    """Write the .npz of each evaluation, and protocol.json, which keeps the protocols of other splits."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(PROTOCOL).name
    protocols = read_json(path)
    for name, result in results.items():
        stem = name_files(result, name.rpartition("/")[2])
        arrays = {"clip_id": np.array(result.clip_ids), **result.per_query, "metrics": np.array(list(result.metrics))}
        for metric, scores in result.scores.items():
            arrays |= {f"scores/{metric}": scores.values, f"clips/{metric}": scores.clips}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomic(folder / f"{stem}.npz", content.getvalue())
        protocols[stem] = result.protocol
    write_json(path, protocols)


def name_files(result: Evaluation, evaluator: str) -> str:
    """`test-clotho-retrieval`, the stem of the files of an evaluation."""
    return f"{result.protocol['split']}-{result.protocol['dataset']}-{evaluator}"


def read_results(folder: Path) -> list[RecordedEvaluation]:
    """All evaluations in a run's folder `evaluation`.

    Raises:
        OSError: protocol.json or an .npz that it names is missing, or the .npz is damaged.
    """
    protocols = json.loads((folder / Path(PROTOCOL).name).read_text())
    return [read_evaluation(folder / f"{stem}.npz", protocol) for stem, protocol in protocols.items()]


def hash_protocol(protocol: Mapping[str, Any]) -> str:
    """Metrics whose protocols have the same hash are comparable.

    The hash has the ids of skipped clips, not the reasons, whose words depend on the decoder.
    """
    hashed = {key: value for key, value in protocol.items() if key not in NOT_IN_HASH}
    hashed["left_out"] = sorted(protocol.get("left_out", ()))
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


def is_earlier(protocol: Mapping[str, Any]) -> bool:
    """Whether a version that did not identify the audio recorded a protocol."""
    return "audio_manifest" not in protocol


def read_evaluation(path: Path, protocol: Mapping[str, Any]) -> RecordedEvaluation:
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise OSError(f"{path} is truncated or damaged ({error}); evaluate again, or restore it") from error
    if "metrics" in arrays:
        metrics = tuple(arrays["metrics"].tolist())
        scores = {
            metric: QueryScores(arrays[f"scores/{metric}"], arrays[f"clips/{metric}"])
            for metric in metrics
            if f"scores/{metric}" in arrays
        }
    else:
        metrics, scores = read_legacy_scores(arrays)
        prefix = f"{protocol['split']}/{protocol['dataset']}"
        metrics = tuple(f"{prefix}/{metric}" for metric in metrics)
        scores = {f"{prefix}/{metric}": found for metric, found in scores.items()}
    return RecordedEvaluation(metrics, arrays["clip_id"], scores, dict(protocol))

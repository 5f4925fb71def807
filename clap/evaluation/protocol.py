"""The protocol of a metric: data, skipped clips, prompts, windows, definitions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clap import __version__ as clap_version
from clap.evaluation.embedded_split import EmbeddedSplit
from clap.model import Clap


def describe_split(clap: Clap, split: EmbeddedSplit) -> dict[str, Any]:
    """The part of the protocol that all evaluators share; it does not depend on the weights."""
    dataset = split.dataset
    paths = {clip.id: clip.path for clip in dataset.clips}
    return {
        "dataset": dataset.name,
        "split": dataset.kind,
        "clips": f"{len(split.index)} of {dataset.num_listed}",
        "left_out": {
            clip_id: strip_path(problem, paths.get(clip_id) or clip_id) for clip_id, problem in split.problems.items()
        },
        "clip_manifest": dataset.digest,
        "windows": clap.windows or "as the model was trained",
        "code_version": clap_version,
    } | ({} if dataset.num_published is None else {"published_clips": dataset.num_published})


def describe_other_splits(splits: Sequence[EmbeddedSplit]) -> dict[str, Any]:
    """The splits that an evaluator reads besides the evaluated one; empty if there are none."""
    clips = {
        split.dataset.kind: {
            "clips": f"{len(split.index)} of {split.dataset.num_listed}",
            "clip_manifest": split.dataset.digest,
        }
        for split in splits
    }
    return {"other_splits": clips} if clips else {}


def strip_path(problem: str, name: Path | str) -> str:
    """A problem without the file that it names, whose folder differs from machine to machine."""
    return problem.partition(f"{name}: ")[2] or problem


def hash_protocol(protocol: Mapping[str, Any]) -> str:
    """Metrics whose protocols have the same hash are comparable."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]

"""Zero-shot classification of clips with several labels by mean average precision (Elizalde et al. 2023)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clap.atomic import write_atomic
from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.evaluation.bars import plot_bars
from clap.evaluation.chance import expected_average_precision, expected_average_precisions
from clap.evaluation.embedded_split import Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.metrics import ranked_precisions
from clap.evaluation.results import Evaluation
from clap.prompts import TEMPLATES, check_templates
from clap.text_table import to_csv

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

METRIC = "multi_label/mean_average_precision"


class MultiLabel(Evaluator):
    """Mean over classes of the average precision of the clips, ranked by their cosine with the class's prompts.

    With n clips of which m have the label, at the ranks r_1 < ... < r_m, the average precision of a class is
    1 / m * sum_i i / r_i. There are no per-query scores: a query is a class, and its score depends on all clips.

    Args:
        templates: prompts with `{}` in place of the class name; their embeddings are averaged.
    """

    metric_names = (METRIC,)

    def __init__(self, *, templates: Sequence[str] = TEMPLATES) -> None:
        self.templates = check_templates(templates, what="class", key="evaluation.multi_label.templates")

    def check(self, dataset: ClapDataset) -> None:
        require_any_label(dataset)

    def __call__(self, clap: "Clap", splits: Splits) -> Evaluation:
        split, dataset = splits.evaluated, splits.evaluated.dataset
        self.check(dataset)
        rows = [row for row, clip in enumerate(split.clips) if clip.all_labels]
        clips = [split.clips[row] for row in rows]
        class_names = sorted({label for clip in clips for label in clip.all_labels})
        listed = {label for clip in [*dataset.clips, *dataset.missing] for label in clip.all_labels}
        is_positive = find_positives(clips, class_names)
        audio_embedding, class_embedding = split.audio_embedding[rows], clap.embed_classes(class_names, self.templates)
        precisions = ranked_precisions(audio_embedding, class_embedding, is_positive.to(audio_embedding.device))
        num_positive = is_positive.sum(dim=0).numpy()
        protocol = {
            "class_names": class_names,
            "classes_without_clips": sorted(listed - set(class_names)),
            "templates": self.templates,
            "clips_with_label": len(clips),
            "label_manifest": digest_labels(clips),
            "mean_average_precision": "mean over classes of the average precision of the clips with a label, ranked by "
            "cosine with the class, whose prompts are averaged and normalised: mean over the clips of the class of the "
            "share of clips of the class among those up to its rank; classes without a clip are skipped",
            "ties": "count against the model",
        }
        return average_classes(METRIC, precisions, class_names, num_positive, clips=clips, protocol=protocol)

    def write_report(self, result: Evaluation, folder: Path) -> None:
        write_precision_report(result, folder, title="Multi-label, {dataset} ({split})".format(**result.protocol))


def require_any_label(dataset: ClapDataset) -> None:
    """ValueError if none of the clips of a dataset has a label."""
    if not any(clip.all_labels for clip in dataset.clips):
        raise ValueError(f"no clip of {dataset.name} ({dataset.kind}) has a label; choose evaluation=[retrieval]")


def find_positives(clips: Sequence[Clip], class_names: Sequence[str]) -> Tensor:
    """Whether a clip has a class, (clips, classes) bool."""
    number = {name: place for place, name in enumerate(class_names)}
    is_positive = torch.zeros(len(clips), len(class_names), dtype=torch.bool)
    for row, clip in enumerate(clips):
        is_positive[row, [number[label] for label in clip.all_labels]] = True
    return is_positive


def average_classes(
    metric: str,
    precisions: Tensor,
    class_names: Sequence[str],
    num_positive: np.ndarray,
    *,
    clips: Sequence[Clip],
    protocol: Mapping[str, Any],
) -> Evaluation:
    """The evaluation whose metric is the mean of the average precisions (classes,), see `write_precision_report`.

    Args:
        num_positive: (classes,) clips of each class.
        clips: that each class ranks.
    """
    return Evaluation(
        {metric: precisions.mean().item()},
        [clip.id for clip in clips],
        per_query={
            "class_names": np.array(class_names),
            "average_precision": precisions.cpu().numpy(),
            "clips_of_class": num_positive,
        },
        protocol=dict(protocol),
        chance={metric: expected_average_precision(num_positive, len(clips), len(clips))},
    )


def write_precision_report(result: Evaluation, folder: Path, *, title: str) -> None:
    """classes.csv and average_precision.png: average precision, number of clips and chance level of each class."""
    names, precisions, counts = (
        result.per_query[key] for key in ("class_names", "average_precision", "clips_of_class")
    )
    total = len(result.clip_ids)
    chance = expected_average_precisions(counts, total, total)
    folder.mkdir(parents=True, exist_ok=True)
    lines = zip(names.tolist(), counts.tolist(), precisions.tolist(), chance.tolist(), strict=True)
    table = to_csv([["class", "clips", "average_precision", "chance"], *lines])
    write_atomic(folder / "classes.csv", table.encode())
    summary = f"mAP {precisions.mean():.1%} over {len(names)} classes of {total} clips, chance {chance.mean():.1%}"
    labels = [f"{name} (n={count})" for name, count in zip(names, counts, strict=True)]
    path = folder / "average_precision.png"
    plot_bars(path, labels, precisions, title=f"{title}\n{summary}", xlabel="average precision", chance=chance)


def digest_labels(clips: Sequence[Clip]) -> str:
    """Hash of ids and labels in any order."""
    manifest = sorted([clip.id, sorted(set(clip.all_labels))] for clip in clips)
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]

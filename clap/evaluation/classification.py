"""Classification by the head of a `ClapAudioClassifier`: accuracy, or mean average precision of several labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.evaluation.class_report import write_class_report
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.labelled_split import require_labels
from clap.evaluation.metrics import accuracy, predict_classes, ranked_precisions
from clap.evaluation.multi_label import (
    average_classes,
    digest_labels,
    find_positives,
    require_any_label,
    write_precision_report,
)
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation

if TYPE_CHECKING:  # imports transformers
    from clap.classifier import ClapAudioClassifier

ACCURACY, MEAN_AVERAGE_PRECISION = "classification/accuracy", "classification/mean_average_precision"


class Classification(Evaluator):
    """Share of clips whose own class has the highest logit; clips without a label, or with several, are skipped."""

    metric_names = (ACCURACY,)
    needs_text, needs_head = False, True

    def check(self, dataset: ClapDataset) -> None:
        require_labels(dataset, dataset.clips)

    def check_model(self, clap: "ClapAudioClassifier", dataset: ClapDataset) -> None:
        check_classes(clap, dataset)

    def __call__(self, clap: "ClapAudioClassifier", splits: Splits) -> Evaluation:
        self.check_model(clap, splits.evaluated.dataset)
        rows = [row for row, clip in enumerate(splits.evaluated.clips) if clip.label is not None]
        clips = [splits.evaluated.clips[row] for row in rows]
        require_labels(splits.evaluated.dataset, clips)
        targets = torch.tensor([clap.class_names.index(clip.label) for clip in clips])
        logits = classify_rows(clap, splits.evaluated, rows)
        predicted = predict_classes(logits, targets.to(logits.device)).cpu()
        hits = predicted == targets
        per_query = {
            "hit": hits.numpy(),
            "label": targets.numpy(),
            "predicted": predicted.numpy(),
            "class_names": np.array(clap.class_names),
        }
        protocol = {"accuracy": "share of clips whose own class has the highest logit; ties count against it"}
        return Evaluation(
            {ACCURACY: accuracy(hits)},
            [clip.id for clip in clips],
            scores={ACCURACY: QueryScores(hits, torch.arange(len(hits)))},
            per_query=per_query,
            protocol=describe_classifier(clap, clips) | protocol,
            chance={ACCURACY: 1 / len(clap.class_names)},
        )

    def write_report(self, result: Evaluation, folder: Path) -> None:
        class_names, targets, predicted = (result.per_query[key] for key in ("class_names", "label", "predicted"))
        title = "Classification, {dataset} ({split})".format(**result.protocol)
        write_class_report(folder, class_names.tolist(), targets, predicted, title)


class MultiLabelClassification(Evaluator):
    """Mean over classes of the average precision of the clips, ranked by the logit of the class (Kong et al. 2020).

    `MultiLabel` has the formula. Classes of the classifier without a clip in the split are skipped.
    """

    metric_names = (MEAN_AVERAGE_PRECISION,)
    needs_text, needs_head = False, True

    def check(self, dataset: ClapDataset) -> None:
        require_any_label(dataset)

    def check_model(self, clap: "ClapAudioClassifier", dataset: ClapDataset) -> None:
        check_classes(clap, dataset)

    def __call__(self, clap: "ClapAudioClassifier", splits: Splits) -> Evaluation:
        split = splits.evaluated
        self.check_model(clap, split.dataset)
        rows = [row for row, clip in enumerate(split.clips) if clip.all_labels]
        clips = [split.clips[row] for row in rows]
        is_positive = find_positives(clips, clap.class_names)
        columns = is_positive.any(dim=0).nonzero().flatten()
        logits, is_positive = classify_rows(clap, split, rows)[:, columns.to(clap.device)], is_positive[:, columns]
        places = torch.eye(len(columns), device=logits.device)  # a class ranks clips by its own logit
        precisions = ranked_precisions(logits, places, is_positive.to(logits.device))
        num_positive = is_positive.sum(dim=0).numpy()
        protocol = {
            "classes_without_clips": len(clap.class_names) - len(columns),
            "label_manifest": digest_labels(clips),
            "mean_average_precision": "mean over classes of the average precision of the clips with a label, ranked by "
            "the logit of the class; classes without a clip are skipped",
            "ties": "count against the model",
        }
        class_names = [clap.class_names[column] for column in columns.tolist()]
        protocol = describe_classifier(clap, clips) | protocol
        return average_classes(
            MEAN_AVERAGE_PRECISION, precisions, class_names, num_positive, clips=clips, protocol=protocol
        )

    def write_report(self, result: Evaluation, folder: Path) -> None:
        write_precision_report(result, folder, title="Classification, {dataset} ({split})".format(**result.protocol))


def check_classes(clap: "ClapAudioClassifier", dataset: ClapDataset) -> None:
    """ValueError if a clip of a split has a class that the classifier does not have."""
    known = set(clap.class_names)
    for clip in [*dataset.clips, *dataset.missing]:
        if unknown := [label for label in clip.all_labels if label not in known]:
            raise ValueError(
                f"{dataset.kind} clip {clip.id} of {dataset.name} has the class {unknown[0]!r}, which is not one "
                f"of the {len(known)} classes that the classifier was trained on; give a dataset with its classes, or "
                "train it on clips of this class too"
            )


def classify_rows(clap: "ClapAudioClassifier", split: EmbeddedSplit, rows: Sequence[int]) -> Tensor:
    """Logits (rows, classes) of some rows of a split, on the device."""
    return clap.head(split.audio_embedding[list(rows)])


def describe_classifier(clap: "ClapAudioClassifier", clips: Sequence[Clip]) -> dict[str, Any]:
    """The part of the protocol that both evaluators share."""
    return {"class_names": clap.class_names, "clips_with_label": len(clips), "trained_on": clap.trained_on}

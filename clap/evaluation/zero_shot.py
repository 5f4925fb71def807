"""Zero-shot classification by prompts (Radford et al. 2021)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clap.dataset.clips import ClapDataset
from clap.evaluation.class_report import write_class_report
from clap.evaluation.embedded_split import Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.labelled_split import LabelledSplit, require_labels, select_labels
from clap.evaluation.metrics import accuracy, predict_classes
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation
from clap.prompts import TEMPLATES, check_templates

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

CHUNK_SIZE = 4096  # clips compared with the classes at a time


class ZeroShot(Evaluator):
    """The class whose prompts' mean embedding is nearest to the clip; classes are known by name alone.

    Args:
        templates: prompts with `{}` in place of the class name.
    """

    metric_names = ("zero_shot/accuracy", "zero_shot/log_likelihood")

    def __init__(self, *, templates: Sequence[str] = TEMPLATES) -> None:
        self.templates = check_templates(templates, what="class", key="evaluation.zero_shot.templates")

    def check(self, dataset: ClapDataset) -> None:
        require_labels(dataset, dataset.clips)

    def __call__(self, clap: "Clap", splits: Splits) -> Evaluation:
        found = select_labels(splits.evaluated)
        predicted, likelihood = [], []
        for logits, own in compare_with_classes(found, clap.embed_classes(found.class_names, self.templates)):
            predicted.append(predict_classes(logits, own))
            likelihood.append((logits * clap.logit_scale.exp()).log_softmax(dim=1).gather(1, own[:, None]))
        predicted, likelihood = torch.cat(predicted).cpu(), torch.cat(likelihood)
        hits = predicted == found.targets
        per_query = {
            "hit": hits.numpy(),
            "label": found.targets.numpy(),
            "predicted": predicted.numpy(),
            "class_names": np.array(found.class_names),
        }
        protocol = {
            "class_names": found.class_names,
            "templates": self.templates,
            "clips_with_label": len(found.clip_ids),
            "accuracy": "share of clips whose own class is nearest; prompts of a class are averaged and normalised",
            "log_likelihood": "mean log of the softmax over classes at the model's logit scale, for the own class",
        }
        metrics = {"zero_shot/accuracy": accuracy(hits), "zero_shot/log_likelihood": likelihood.mean().item()}
        return Evaluation(
            metrics,
            found.clip_ids,
            # Without log_likelihood: a mean in float32, which float64 values do not reproduce.
            scores={"zero_shot/accuracy": QueryScores(hits, torch.arange(len(hits)))},
            per_query=per_query,
            protocol=protocol,
            chance={"zero_shot/accuracy": 1 / len(found.class_names)},
        )

    def write_report(self, result: Evaluation, folder: Path) -> None:
        class_names, targets, predicted = (result.per_query[key] for key in ("class_names", "label", "predicted"))
        title = "Zero-shot, {dataset} ({split})".format(**result.protocol)
        write_class_report(folder, class_names.tolist(), targets, predicted, title)


def compare_with_classes(found: LabelledSplit, class_embedding: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines (chunk, classes) and targets (chunk,) of a few thousand clips at a time, on the device."""
    chunks = (found.audio_embedding.split(CHUNK_SIZE), found.targets.split(CHUNK_SIZE))
    for some, own in zip(*chunks, strict=True):
        yield some @ class_embedding.T, own.to(some.device)

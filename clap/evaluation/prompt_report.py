"""Zero-shot classification by each of many prompts: how much the accuracy depends on the wording."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clap.atomic import write_atomic
from clap.dataset.clips import ClapDataset
from clap.evaluation.bars import plot_bars
from clap.evaluation.embedded_split import Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.labelled_split import LabelledSplit, require_labels, select_labels
from clap.evaluation.metrics import accuracy, zero_shot_hits
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation
from clap.evaluation.zero_shot import compare_with_classes
from clap.prompts import check_templates, fill_templates
from clap.proportion import wilson_interval
from clap.text_table import to_csv

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

ENSEMBLE = "all prompts averaged"


class PromptReport(Evaluator):
    """Accuracy of each prompt alone, and of the normalised mean of the class's embeddings of all prompts.

    Best and worst are chosen on the evaluated clips, so they have no per-query scores: an interval over clips would be
    too narrow.

    Args:
        templates: prompts with `{}` in place of the class name.
    """

    metric_names = tuple(f"prompt_report/{name}_accuracy" for name in ("mean", "ensemble", "best", "worst"))

    def __init__(self, *, templates: Sequence[str]) -> None:
        self.templates = check_templates(templates, what="class", key="evaluation.prompt_report.templates")
        if repeated := [text for i, text in enumerate(self.templates) if text in self.templates[:i]]:
            raise ValueError(
                f"evaluation.prompt_report.templates has {repeated[0]!r} twice, which counts it twice; remove one"
            )

    def check(self, dataset: ClapDataset) -> None:
        require_labels(dataset, dataset.clips)

    def __call__(self, clap: "Clap", splits: Splits) -> Evaluation:
        found = select_labels(splits.evaluated)
        prompts = clap.get_text_embeddings(fill_templates(found.class_names, self.templates))
        prompts = prompts.view(len(found.class_names), len(self.templates), -1)  # (classes, prompts, embed_dim)
        ensemble = F.normalize(prompts.mean(dim=1), dim=-1)
        hits = torch.stack([find_hits(found, embedding) for embedding in (*prompts.unbind(dim=1), ensemble)])
        accuracies = hits[:-1].double().mean(dim=1)  # (prompts,)
        mean, ensemble, best, worst = self.metric_names
        clips = np.arange(hits.shape[1])
        return Evaluation(
            {
                mean: accuracies.mean().item(),
                ensemble: accuracy(hits[-1]),
                best: accuracies.max().item(),
                worst: accuracies.min().item(),
            },
            found.clip_ids,
            scores={
                mean: QueryScores(hits[:-1].double().mean(dim=0), clips),
                ensemble: QueryScores(hits[-1], clips),
            },
            per_query={
                "hit": hits.T.numpy(),
                "prompt": np.array([*self.templates, ENSEMBLE]),
                "label": found.targets.numpy(),
                "class_names": np.array(found.class_names),
            },
            protocol={
                "class_names": found.class_names,
                "templates": self.templates,
                "clips_with_label": len(found.clip_ids),
                "accuracy": "share of clips whose own class is nearest, for each prompt alone; mean, best and worst of "
                "the prompts; ensemble: embeddings of all prompts of a class are averaged and normalised",
            },
            chance=dict.fromkeys((mean, ensemble), 1 / len(found.class_names)),
        )

    def write_report(self, result: Evaluation, folder: Path) -> None:
        """prompts.csv and prompts.png: accuracy of each prompt with its 95 % interval (Wilson 1927), best first."""
        prompts, accuracies = result.per_query["prompt"].tolist(), result.per_query["hit"].mean(axis=0)
        total, num_classes = len(result.clip_ids), len(result.per_query["class_names"])
        intervals = [wilson_interval(value, total) for value in accuracies]
        bounds = [(interval.low, interval.high) for interval in intervals]
        order = np.argsort(-accuracies, kind="stable")
        folder.mkdir(parents=True, exist_ok=True)
        lines = [[prompts[row], total, float(accuracies[row]), *bounds[row]] for row in order]
        table = to_csv([["prompt", "clips", "accuracy", "ci_low", "ci_high"], *lines])
        write_atomic(folder / "prompts.csv", table.encode())
        alone = accuracies[:-1]
        title = "Prompts, {dataset} ({split})\n".format(**result.protocol)
        title += f"accuracy {alone.min():.1%} to {alone.max():.1%}, mean {alone.mean():.1%}, of {total} clips"
        plot_bars(
            folder / "prompts.png",
            prompts,
            accuracies,
            title=title,
            xlabel="accuracy",
            chance=1 / num_classes,
            bounds=bounds,
            marked=ENSEMBLE,
        )


def find_hits(found: LabelledSplit, class_embedding: Tensor) -> Tensor:
    """(clips,) bool on the CPU, whether the own class is nearest."""
    return torch.cat([zero_shot_hits(*chunk) for chunk in compare_with_classes(found, class_embedding)]).cpu()

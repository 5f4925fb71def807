"""Retrieval in both directions, any number of captions a clip (Koepke et al. 2022)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.evaluation.chance import retrieval_chance
from clap.evaluation.embedded_split import Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.metric_names import DEFAULT_METRICS, define_metric, name_both_directions
from clap.evaluation.ranks import retrieval_ranks
from clap.evaluation.relevance import Relevance
from clap.evaluation.results import Evaluation
from clap.evaluation.retrieval_metrics import RETRIEVAL_METRICS, retrieval_metrics, retrieval_scores

if TYPE_CHECKING:  # imports transformers
    from clap.model import Clap

TIES = "count against the model"
OWN_CLIP = {
    "text_to_audio": "every caption is a query; its own clip is the one right answer among all clips",
    "audio_to_text": "every clip is a query; recall and median rank take the best of its captions, "
    "mAP@10 divides by the number of its captions, at most 10",
}
EQUAL_CAPTIONS = {  # where they are made from labels
    "definition": 2,
    "text_to_audio": "every caption is a query; all clips with an equal caption from labels are right answers among "
    "all clips; recall and median rank take the best of them, mAP@10 divides by their number, at most 10",
    "audio_to_text": "every clip is a query; equal captions from labels are one text; recall and median rank take the "
    "best of its captions, mAP@10 divides by the number of its captions, at most 10",
}


ANNOTATED = {
    "text_to_audio": "every caption of the annotation file is one query; the clips that the file lists for it are "
    "right answers among all clips",
    "audio_to_text": "every clip that is a right answer is a query; all captions of the annotation file are candidates",
}


class Retrieval(Evaluator):
    """Text to audio and audio to text over the whole split, every caption of every clip.

    Equal captions of two clips are two texts, each with one right clip, as published for Clotho and AudioCaps. Where
    captions are made from labels, equal captions are one text, and all their clips are right.

    Args:
        metrics: further metrics of both directions, names of `clap.evaluation.metric_names.DEFINITIONS` with a number
            for K, such as recall_at_50.
        relevance: CSV with the relevant clips of captions of the evaluated split, see `clap.evaluation.relevance`;
            None: the clip that has a caption is relevant.

    Raises:
        ValueError: there is no such metric, or the CSV is invalid.
        FileNotFoundError: there is no such CSV.
    """

    metric_names = RETRIEVAL_METRICS

    def __init__(self, *, metrics: Sequence[str] = (), relevance: str | Path | None = None) -> None:
        self.relevance = None if relevance is None else Relevance(relevance)
        self.metrics = list(dict.fromkeys([*DEFAULT_METRICS, *metrics]))
        self.definitions = {name: define_metric(name) for name in self.metrics}
        if metrics:
            self.metric_names = name_both_directions(self.metrics)

    def check(self, dataset: ClapDataset) -> None:
        if self.relevance:
            self.relevance.check(dataset)

    def __call__(self, clap: "Clap", splits: Splits) -> Evaluation:
        split = splits.evaluated
        clips, device = split.clips, split.audio_embedding.device
        if self.relevance:
            found = self.relevance.gallery(split.dataset, clips)
            texts, pairs = found.texts, (found.pair_clips, found.pair_texts)
            further = {
                "grades": torch.tensor(found.grades, device=device),
                "text_clips": torch.tensor(found.text_clips, device=device),
            }
            protocol = {"relevance": found.protocol, "ties": TIES} | ANNOTATED
        else:
            texts, *pairs = list_pairs(clips)
            further, protocol = {}, describe_captions(clips)
        pair_clips, pair_texts = (torch.tensor(rows, device=device) for rows in pairs)
        text_embedding = clap.get_text_embeddings(texts)
        ranks = retrieval_ranks(split.audio_embedding, text_embedding, pair_clips, pair_texts, **further)
        per_query = {
            "text_clip": ranks.pair_clips.cpu().numpy(),
            "text": ranks.pair_texts.cpu().numpy(),
            "text_to_audio_rank": ranks.text_to_audio.cpu().numpy(),
            "audio_to_text_rank": ranks.audio_to_text.cpu().numpy(),
            "audio_to_text_best_rank": ranks.best_text.cpu().numpy(),
        }
        if self.relevance:
            per_query |= {"query": np.array(texts), "grade": ranks.grades.cpu().numpy()}
        return Evaluation(
            retrieval_metrics(ranks, self.metrics),
            [clip.id for clip in clips],
            scores=retrieval_scores(ranks, self.metrics),
            per_query=per_query,
            protocol=protocol | {"definitions": self.definitions},
            chance=retrieval_chance(ranks, num_clips=len(clips), num_texts=len(texts), metrics=self.metrics),
        )


def list_pairs(clips: Sequence[Clip]) -> tuple[list[str], list[int], list[int]]:
    """The texts of a gallery, and for each caption of each clip the row of the clip and of its text.

    Equal captions that are made from labels are one text; of other captions each is a text of its own.
    """
    texts, pair_clips, pair_texts = [], [], []
    known: dict[str, int] = {}  # caption made from labels -> row of its text
    for row, clip in enumerate(clips):
        for caption in dict.fromkeys(clip.captions) if clip.captions_from_labels else clip.captions:
            text = known.setdefault(caption, len(texts)) if clip.captions_from_labels else len(texts)
            if text == len(texts):
                texts.append(caption)
            pair_clips.append(row)
            pair_texts.append(text)
    return texts, pair_clips, pair_texts


def describe_captions(clips: Sequence[Clip]) -> dict[str, Any]:
    """The captions and which answers are right, for the protocol."""
    clips_of_caption = Counter(caption for clip in clips for caption in set(clip.captions))
    from_labels = sum(clip.captions_from_labels for clip in clips)
    protocol = {
        "captions_per_clip": sorted({len(clip.captions) for clip in clips}),
        "captions_of_several_clips": sum(count > 1 for count in clips_of_caption.values()),
        "ties": TIES,
    }
    return protocol | (EQUAL_CAPTIONS | {"captions_from_labels": from_labels} if from_labels else OWN_CLIP)

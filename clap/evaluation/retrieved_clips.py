"""A few clips of a split with the captions or classes that they retrieve, for the pictures and recordings of a run.

The texts are the captions of the split. Where captions are made from labels, they are the classes: clips of one class
then have the same caption, which is a wrong answer for none of them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch
from torch import Tensor

from clap.classifier import ClapAudioClassifier
from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.item import Item
from clap.model import Clap

MAX_CLIPS = 64
MAX_RECORDINGS = 6  # clips whose recordings are kept
MAX_TEXTS = 3  # that a clip retrieves


@dataclass(frozen=True)
class RetrievedText:
    """One caption or class that a clip retrieved, and whether it is the clip's own."""

    text: str
    score: float
    is_own: bool


@dataclass
class RetrievedClips:
    """A few clips of a split, and the texts that they can retrieve.

    Attributes:
        clips: (clips,), by turns of each class where the texts are classes.
        items: the first of them with their recordings.
        audio_embedding: (clips, embed_dim) on the CPU; of a classifier probabilities (clips, classes).
        texts: (texts,) all captions or classes of the split; of a classifier its classes.
        text_embedding: (texts, embed_dim) on the CPU; of a classifier the identity (classes, classes).
        by_class: whether the texts are classes.
        num_clips: of the split.
    """

    clips: list[Clip]
    items: list[Item]
    audio_embedding: Tensor
    texts: list[str]
    text_embedding: Tensor
    by_class: bool
    num_clips: int

    def own(self) -> list[Sequence[str]]:
        """The captions or classes of each clip."""
        return [clip.all_labels if self.by_class else clip.captions for clip in self.clips]

    def retrieved(self) -> list[list[RetrievedText]]:
        """The texts with the highest scores of each clip with a recording, best first."""
        scores = self.audio_embedding[: len(self.items)] @ self.text_embedding.T
        return [retrieve(row, self.texts, own) for row, own in zip(scores, self.own(), strict=False)]


def retrieve_clips(clap: Clap | ClapAudioClassifier, dataset: ClapDataset) -> RetrievedClips:
    """Embed a few clips and all captions or classes of a dataset."""
    is_classifier = isinstance(clap, ClapAudioClassifier)
    by_class = is_classifier or has_classes(dataset.clips)
    order = take_turns(dataset.clips) if by_class else range(len(dataset))
    embed = clap.classify if is_classifier else clap.get_audio_embeddings
    clips, items, rows = [], [], []
    for index in order[:MAX_CLIPS]:  # one at a time: a fusion reads whole clips, which may be long
        item = dataset[index]
        if item.problem is None:
            clips.append(dataset.clips[item.index])
            rows.append(embed(item.waveform, clap.sample_rate).cpu())
            items += [item] if len(items) < MAX_RECORDINGS else []
    if is_classifier:
        texts, text_embedding = clap.class_names, torch.eye(len(clap.class_names))
    elif by_class:
        texts = sorted({label for clip in dataset.clips for label in clip.all_labels})
        text_embedding = clap.embed_classes(texts)
    else:
        texts = list(dict.fromkeys(dataset.captions))
        text_embedding = clap.get_text_embeddings(texts)
    embeddings = torch.cat([torch.empty(0, text_embedding.shape[1]), *rows])
    return RetrievedClips(clips, items, embeddings, texts, text_embedding.cpu(), by_class, len(dataset))


def retrieve(scores: Tensor, texts: Sequence[str], own: Sequence[str]) -> list[RetrievedText]:
    """The texts with the highest scores (texts,), best first."""
    best = zip(*map(Tensor.tolist, scores.topk(min(MAX_TEXTS, len(texts)))), strict=True)
    return [RetrievedText(texts[i], score, texts[i] in own) for score, i in best]


def has_classes(clips: Sequence[Clip]) -> bool:
    """Whether the captions of all clips are made from their labels."""
    return all(clip.captions_from_labels and clip.all_labels for clip in clips)


def take_turns(clips: Sequence[Clip]) -> list[int]:
    """Indices of the labelled clips, the first of each class, then the second of each class, and so on."""
    classes = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.all_labels:
            classes[clip.all_labels[0]].append(index)
    turns = zip_longest(*(classes[name] for name in sorted(classes)))
    return [index for index in chain.from_iterable(turns) if index is not None]

"""A corpus of tones whose label is their pitch, and trainers of a tiny classifier on it."""

from collections.abc import Callable

import numpy as np
import torch
from conftest import make_tone
from torch.optim import AdamW

from clap import ClapAudioClassifier, ClapDataset, ClapTrainer, TrainerSettings
from clap.config.augmentation_settings import AugmentationSettings
from clap.corpus import Clip, Corpus
from clap.dataset.loader import make_loader
from clap.loss import BinaryCrossEntropyLoss, CrossEntropyLoss

PITCHES = {"high": 3000.0, "low": 200.0, "middle": 900.0}


class LabelledTones(Corpus):
    """Clips of a second; the labels of a clip are the pitches that it is the sum of."""

    name = "tones"

    def __init__(self, *, several: bool = False, **clips: list[Clip]) -> None:
        sizes = {"train": 12, "val": 6, "test": 6}
        self.listed = {split: list_tones(split, count, several=several) for split, count in sizes.items()} | clips

    def clips(self, split: str) -> list[Clip]:
        return self.listed[split]

    def load(self, clip: Clip, *, sample_rate: int, **_: object) -> np.ndarray:
        tones = [make_tone(PITCHES[name], 1.0, sample_rate=sample_rate, seed=len(clip.id)) for name in clip.all_labels]
        return (sum(tones) / len(tones)).astype(np.float32)

    def read_header(self, clip: Clip) -> None:
        return None

    def identify(self, clip: Clip) -> str:
        return clip.id


def list_tones(split: str, count: int, *, several: bool) -> list[Clip]:
    names = list(PITCHES)
    chosen = [[names[i % 3], *([names[(i + 1) % 3]] if several and i % 2 else [])] for i in range(count)]
    return [make_clip(f"{split} {i}", *labels, several=several) for i, labels in enumerate(chosen)]


def make_clip(clip_id: str, *labels: str, several: bool = False) -> Clip:
    options = {"labels": labels} if several or len(labels) > 1 else {"label": labels[0] if labels else None}
    return Clip(clip_id, (f"a tone of {clip_id}",), **options)


def make_classifier_trainer(
    tiny_clap: Callable,
    corpus: Corpus | None = None,
    *,
    epochs: int = 2,
    lr: float = 1e-3,
    multi_label: bool = False,
    freeze: tuple[str, ...] = (),
    augmentation: AugmentationSettings | None = None,
    **options: object,
) -> ClapTrainer:
    """A trainer of a tiny classifier, two steps an epoch."""
    clap, corpus = tiny_clap("audio_encoder.drop_path=0.0"), corpus or LabelledTones(several=multi_label)
    torch.manual_seed(0)
    classifier = ClapAudioClassifier(clap, sorted(PITCHES), multi_label=multi_label).freeze(freeze)
    classifier.augment(augmentation or AugmentationSettings())
    form = {"sample_rate": classifier.sample_rate, "window": classifier.window}
    loaders = [
        make_loader(
            ClapDataset(corpus, kind, **form), classifier.collate, batch_size=6, num_workers=0, shuffle=kind == "train"
        )
        for kind in ("train", "val", "test")
    ]
    criterion = BinaryCrossEntropyLoss() if multi_label else CrossEntropyLoss()
    optimizer = AdamW(classifier.parameters(), lr=lr)
    return ClapTrainer(*loaders, classifier, optimizer, criterion, epochs, settings=TrainerSettings(**options))

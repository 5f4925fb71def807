"""`ClapAudioClassifier`: the audio tower of a Clap with a linear head over class names, for fine-tuning."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clap import checkpoint, saving
from clap.audio_model import AudioModel
from clap.config import read_config
from clap.config.values import CLASSIFIER, CLASSIFIER_FEATURES
from clap.dataset.loader import Collate
from clap.lora import merge_adapters
from clap.model import Clap
from clap.parts import model_config, read_saved_config
from clap.prompts import check_texts
from clap.published.limits import check_described
from clap.published.load import check_keys
from clap.published.sources import is_published
from clap.recordings import Recording


class ClapAudioClassifier(AudioModel):
    """Waveforms to logits of classes: the audio encoder of a Clap, and one linear layer.

    Waveform (batch, samples), lengths (batch,) -> logits (batch, classes). The classifier takes over the audio encoder
    and its fusion, not a copy; the text encoder is not part of it.

    Args:
        clap: the model with the audio encoder, such as a checkpoint.
        class_names: (classes,), in the order of the logits.
        features: what the head classifies: `encoder`, the output of the audio encoder (PANNs, HTS-AT, Custom-CLAP), or
            `projection`, that of the audio projection before it is normalised (LAION-CLAP).
        dropout: of the features in training.
        multi_label: a clip may have several classes, or none: probabilities are sigmoids instead of a softmax.
        trained_on: the training clips, for the protocol of an evaluation.

    Raises:
        ValueError: class names repeat or are fewer than two, or an option is out of range.
    """

    def __init__(
        self,
        clap: Clap,
        class_names: Sequence[str],
        *,
        features: str = "encoder",
        dropout: float = 0.0,
        multi_label: bool = False,
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_head(class_names, features=features, dropout=dropout)
        self.class_names: list[str] = list(class_names)
        self.multi_label = multi_label
        self.audio_encoder, self.text_encoder = clap.audio_encoder, None
        self.audio_projection = clap.audio_projection if features == "projection" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embed_dim, len(class_names))
        self.to(clap.device)
        self.set_windows(clap.windows)
        if clap.config is not None:
            options = {"features": features, "dropout": dropout, "multi_label": multi_label}
            head = {"class_names": self.class_names, **options, "trained_on": trained_on}
            self.config = clap.config | {"text_encoder": None, CLASSIFIER: head}

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any]) -> "ClapAudioClassifier":
        """A new classifier from the config that a checkpoint of one has, a path or a mapping."""
        config = model_config(read_config(config))
        return cls(Clap.from_config({key: config[key] for key in config if key != CLASSIFIER}), **config[CLASSIFIER])

    @classmethod
    def from_ckpt(cls, ckpt: str | os.PathLike) -> "ClapAudioClassifier":
        """The classifier of a run folder (its best checkpoint) or of a checkpoint folder, in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: it is missing or damaged, or not a classifier. No code in it is executed.
        """
        folder = checkpoint.find_best(Path(ckpt))
        config = read_saved_config(folder)
        if CLASSIFIER not in config:
            raise ValueError(
                f"{folder} is a Clap without a head; load it with Clap.from_ckpt, or train a classifier from it: "
                "python train.py experiment=fine_tune_classifier init_from=CHECKPOINT"
            )
        weights = checkpoint.read_weights(folder)
        check_keys(check_described(cls.from_config, config, weights, str(folder)).state_dict(), weights, str(folder))
        model = cls.from_config(config)
        model.load_state_dict(weights)
        return merge_adapters(model).eval()

    @property
    def embed_dim(self) -> int:
        """Width of what the head classifies."""
        projection = self.audio_projection
        return self.audio_encoder.output_dim if projection is None else projection.linear2.out_features

    @property
    def collate(self) -> Collate:
        """Collate function of a DataLoader over ClapDataset: pads waveforms, without tokens, and draws augmentation."""
        return Collate(make_no_tokens, augmentation=self.augmentation, sample_rate=self.sample_rate)

    @property
    def trained_on(self) -> dict[str, Any] | None:
        """The training clips, of a classifier with a config; see clap/training/classifier_objective.py."""
        return None if self.config is None else self.config[CLASSIFIER]["trained_on"]

    @trained_on.setter
    def trained_on(self, value: dict[str, Any]) -> None:
        if self.config is not None:
            self.config[CLASSIFIER]["trained_on"] = value

    def forward(self, waveform: Tensor, lengths: Tensor, features: Tensor | None = None) -> Tensor:
        """Waveform (batch, samples), lengths (batch,) on the CPU -> logits (batch, classes).

        Args:
            features: outputs of the audio encoder (batch, output_dim), in place of the waveform.
        """
        return self.head(self.dropout(self.embed_audio(waveform, lengths, features))).float()

    def embed_audio(self, waveform: Tensor, lengths: Tensor, features: Tensor | None = None) -> Tensor:
        """Waveform (batch, samples), lengths (batch,), or outputs of the encoder -> (batch, embed_dim), of any norm."""
        features = self.audio_encoder(waveform, lengths) if features is None else features
        return (features if self.audio_projection is None else self.audio_projection(features)).float()

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities (batch, classes), which sum to 1 unless `multi_label` is set."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def classify(
        self, audio: Recording | Iterable[Recording], sample_rate: int | None = None, *, batch_size: int = 16
    ) -> Tensor:
        """Probabilities (n, classes) of n files, or of n waveforms at `sample_rate` Hz; see `get_audio_embeddings`.

        Raises:
            AudioError: an invalid clip. ValueError: waveforms without sample_rate.
        """
        features = self.get_audio_embeddings(audio, sample_rate, batch_size=batch_size)
        with self.inference():
            return self.to_probabilities(self.head(features))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write a checkpoint folder, atomically, for ClapAudioClassifier.from_ckpt.

        Raises:
            OSError: it cannot be written, or the folder contains other files, which are kept.
        """
        saving.write_pretrained(self, Path(folder).resolve(), huggingface=False)


def load_model(ckpt: str | os.PathLike) -> Clap | ClapAudioClassifier:
    """The model of a checkpoint, in evaluation mode: a classifier if the checkpoint has a head."""
    if not is_published(ckpt) and CLASSIFIER in read_saved_config(checkpoint.find_best(Path(ckpt))):
        return ClapAudioClassifier.from_ckpt(ckpt)
    return Clap.from_ckpt(ckpt)


def make_no_tokens(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (batch, 0) of a model without a text encoder."""
    ids = torch.zeros(len(captions), 0, dtype=torch.long)
    return ids, ids.bool()


def check_head(class_names: Sequence[str], *, features: str, dropout: float) -> None:
    """ValueError if class names repeat or are fewer than two, or an option is out of range."""
    check_texts(class_names, "class name")
    if len(set(class_names)) < max(len(class_names), 2):
        raise ValueError(f"class_names={list(class_names)[:8]}: give two or more names, each once")
    if features not in CLASSIFIER_FEATURES:
        raise ValueError(f"classifier.features={features!r} is not one of {', '.join(CLASSIFIER_FEATURES)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"classifier.dropout={dropout} must be at least 0 and below 1")

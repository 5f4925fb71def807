"""The audio side that `Clap` and `ClapAudioClassifier` share: encoder, windows, frozen parts, embeddings of files."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from clap import saving
from clap.audio_encoder.base import AudioEncoder
from clap.config.augmentation_settings import AugmentationSettings
from clap.config.values import WINDOW_POLICIES
from clap.dataset.loader import Collate
from clap.progress import progress_bar
from clap.recordings import Recording, load_batches
from clap.waveform import LONGEST, AudioError


class AudioModel(nn.Module):
    """A model with an audio encoder that embeds waveforms and files.

    A child class has the audio encoder as a submodule, and defines `embed_dim`, `embed_audio` and `collate`.

    Attributes:
        config: what rebuilds the model; None if it was built from modules.
        longest_clip: seconds; inference refuses a clip of which more would be read.
        frozen: names of the submodules without training.
        windows: `mean` if those of longer clips are averaged, regardless of the fusion.
        augmentation: of training clips.
        class_names: (classes,) of a classifier; None of another model.
    """

    audio_encoder: AudioEncoder
    text_encoder: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] | None = None
        self.longest_clip = LONGEST
        self.frozen: list[str] = []
        self.windows: str | None = None
        self.augmentation = AugmentationSettings()
        self.class_names: list[str] | None = None

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        raise NotImplementedError

    @property
    def collate(self) -> Collate:
        """Collate function of a DataLoader over ClapDataset."""
        raise NotImplementedError

    def embed_audio(self, waveform: Tensor, lengths: Tensor, features: Tensor | None = None) -> Tensor:
        """Waveform (batch, samples), lengths (batch,), or outputs of the encoder -> (batch, embed_dim)."""
        raise NotImplementedError

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the waveforms."""
        return self.audio_encoder.sample_rate

    @property
    def input_format(self) -> dict[str, Any]:
        """Arguments of `open_loader` that depend on the model."""
        return {"sample_rate": self.sample_rate, "window": self.window, "collate": self.collate}

    @property
    def window(self) -> float | None:
        """Seconds of a clip that are used; None if the audio encoder takes clips of any length."""
        return None if self.audio_encoder.whole_clip else self.audio_encoder.window

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save(self, folder: Path, extra: Mapping | None = None, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write config, weights and tokenizer into an existing folder; `extra` (data, evaluation) joins the config."""
        saving.write_model(self, folder, extra, weights)

    def set_windows(self, windows: str | None) -> None:
        """`mean`: average evenly spaced windows of longer clips; None: the policy that the model was trained with.

        Raises:
            ValueError: an unknown policy, or an audio encoder without windows.
        """
        if windows not in WINDOW_POLICIES:
            raise ValueError(f"windows={windows!r} is not mean or null")
        self.audio_encoder.set_windows(windows)
        self.windows = windows

    def freeze(self, names: Sequence[str]) -> Self:
        """Freeze submodules: no gradients, no dropout and no updates of batch statistics in training."""
        allowed = [name for name, _ in self.named_children()]
        for name in names:
            if name not in allowed:
                raise ValueError(f"freeze={list(names)}: {name!r} is not one of {', '.join(allowed)}")
            self.get_submodule(name).requires_grad_(False).eval()
        self.frozen = list(names)
        return self

    def augment(self, settings: AugmentationSettings) -> Self:
        """Augment training, in loaders that use `collate` afterwards; ValueError if the audio encoder cannot."""
        self.audio_encoder.drop_frames(settings.frame_out)
        self.audio_encoder.drop_patches(settings.patch_out)
        self.augmentation = settings
        return self

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; the previous mode is restored on exit."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():  # not inference_mode, whose results cannot be used in training
                yield
        finally:
            self.train(training)

    def get_audio_embeddings(
        self,
        audio: Recording | Iterable[Recording],
        sample_rate: int | None = None,
        *,
        batch_size: int = 16,
        progress: bool | None = None,
    ) -> Tensor:
        """Embeddings (n, embed_dim) of n files or n waveforms at `sample_rate` Hz, in input order; of Clap unit norm.

        A waveform is float (samples,) or (channels, samples); a batch of equal length may be one array (n, samples).
        The embedding of a clip does not depend on its batch.

        Args:
            batch_size: clips per batch; fewer if they are longer than a minute.
            progress: whether to show a bar; None: for more than two batches.

        Raises:
            AudioError: an invalid file or waveform. ValueError: waveforms without sample_rate.
        """
        is_one = isinstance(audio, str | os.PathLike) or getattr(audio, "ndim", 2) == 1
        audio = [audio] if is_one else list(audio)
        embedding = torch.empty(len(audio), self.embed_dim, device=self.device)
        hidden = len(audio) <= 2 * batch_size if progress is None else not progress
        rows = self.embed_each(audio, sample_rate, batch_size=batch_size)
        for position, row in progress_bar(rows, total=len(audio), unit="clip", hidden=hidden):
            if isinstance(row, AudioError):
                raise row
            embedding[position] = row
        return embedding

    def embed_each(
        self, audio: Sequence[Recording], sample_rate: int | None = None, *, batch_size: int = 16
    ) -> Iterator[tuple[int, Tensor | AudioError]]:
        """Position and embedding (embed_dim,) of each clip, or the AudioError of an invalid clip.

        Clips are batched by duration, the longest first: a batch that is too large for the memory fails immediately,
        and there is little padding.
        """
        limits = {"window": self.window, "longest": self.longest_clip}
        batches = load_batches(audio, sample_rate, batch_size=batch_size, target_rate=self.sample_rate, **limits)
        for waveforms, errors in batches:
            yield from errors.items()
            if waveforms:
                lengths = torch.tensor([len(waveform) for waveform in waveforms.values()])
                batch = nn.utils.rnn.pad_sequence(list(waveforms.values()), batch_first=True)
                with self.inference():  # not around the yield, where the caller's code runs
                    embeddings = self.embed_audio(batch.to(self.device), lengths)
                yield from zip(waveforms, embeddings, strict=True)

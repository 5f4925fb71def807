"""Base classes of audio encoders: the contract, and encoders on a log-mel spectrogram."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clap.audio import LogMelSpectrogram, SpecAugment
from clap.config.values import choose_weights
from clap.fusion import ROWS, MeanOfWindows, OneWindow, Views


class AudioEncoder(nn.Module):
    """Waveforms to one vector per clip: the contract that `Clap`, the dataset and the cost estimate rely on.

    waveform (batch, samples), lengths (batch,) on the CPU -> (batch, output_dim)

    Lengths are on the CPU, where their values are read without waiting for the device; what the device computes with
    them goes there with `.to(waveform.device, non_blocking=True)`.

    Attributes:
        sample_rate: Hz of the waveforms.
        window: seconds of its input.
        output_dim: width of its output.
        whole_clip: whether it takes clips of any length; otherwise longer clips are cut to `window` seconds.
        takes_fusion: whether its constructor has an argument `fusion`.
        loads_weights: whether its constructor loads the weights of `pretrained`; otherwise `clap.parts` does.
    """

    sample_rate: int
    window: float
    output_dim: int
    whole_clip = False
    takes_fusion = False
    loads_weights = False

    def describe_window(self) -> str:
        """The window, and what the encoder sees of a longer clip, for the log."""
        return f"{self.window:g} s; of a longer clip {self.describe_longer()}"

    def describe_longer(self) -> str:
        """What the encoder sees of a clip longer than its window."""
        return "all of it" if self.whole_clip else OneWindow.description

    def set_windows(self, windows: str | None) -> None:
        """Average evenly spaced windows of longer clips (`mean`), or None.

        Raises:
            ValueError: the encoder has no windows to average.
        """
        if windows is not None:
            raise ValueError(f"windows={windows}: {type(self).__name__} has no windows to average; set windows=null")

    def parts_to_compile(self) -> list[nn.Module]:
        """The modules that `trainer.compile` compiles, each as a whole: those with most of the work.

        Blocks of one class and shape share the compiled code.
        """
        return [self]

    def fuse_attention(self) -> None:
        """Compute attention by `scaled_dot_product_attention` where timm has a choice; `trainer.fused_attention`."""
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = True

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them; `trainer.activation_checkpointing`.

        Raises:
            ValueError: the encoder cannot.
        """
        raise ValueError(
            f"{type(self).__name__} has no activation checkpointing; set trainer.activation_checkpointing=false"
        )

    def drop_frames(self, share: float) -> None:
        """Drop a random share of the frames of the input in training; `augmentation.frame_out`.

        Raises:
            ValueError: the encoder has no frames, or too few remain.
        """
        if share:
            raise ValueError(
                f"{type(self).__name__} has no log-mel of which to drop frames; set augmentation.frame_out=0"
            )

    def drop_patches(self, share: float) -> None:
        """Drop a random share of the patches in training; `augmentation.patch_out`.

        Raises:
            ValueError: the encoder has no patches, or needs all of them.
        """
        if share:
            raise ValueError(
                f"{type(self).__name__} cannot drop patches; set augmentation.patch_out=0, or audio_encoder=timm and a "
                "vision transformer, such as audio_encoder.name=vit_tiny_patch16_224"
            )

    @classmethod
    def find_weights(cls, pretrained: bool | str, name: str | None) -> str | None:
        """Hub name, address, file or folder of the configured weights; None for random weights."""
        return choose_weights("audio_encoder", pretrained, name)


class LogMelEncoder(AudioEncoder):
    """An encoder on a log-mel spectrogram, with a fusion for clips longer than the window.

    A subclass is the network: it sets `output_dim` and defines `encode`, which takes normalised views
    (n, views, frames, n_mels) and is_longer (n,) on the CPU and returns (n, output_dim).

    Args:
        frontend: waveform to log-mel, and its window; pretrained weights require the frontend of their training.
        fusion: policy for clips longer than the window; one window by default.
        spec_augment: masks on the log-mel in training.
    """

    takes_fusion = True
    shortest_frames = 1  # of the log-mel

    def __init__(
        self,
        frontend: LogMelSpectrogram,
        fusion: nn.Module | None,
        spec_augment: SpecAugment | None,
    ) -> None:
        super().__init__()
        self.frontend = frontend
        self.fusion = fusion or OneWindow()
        self.spec_augment = spec_augment
        self.bn0 = nn.BatchNorm2d(frontend.n_mels)  # over mel bins
        self.windows: str | None = None
        self.num_kept = frontend.num_frames  # in training

    @property
    def sample_rate(self) -> int:
        return self.frontend.sample_rate

    @property
    def window(self) -> float:
        return self.frontend.num_samples / self.frontend.sample_rate

    @property
    def whole_clip(self) -> bool:
        return self.windows == "mean" or self.fusion.whole_clip

    def describe_longer(self) -> str:
        policy = MeanOfWindows if self.windows == "mean" else self.fusion
        return getattr(policy, "description", type(self.fusion).__name__)

    def set_windows(self, windows: str | None) -> None:
        """`mean`: average evenly spaced windows of longer clips, regardless of the fusion; None: use the fusion."""
        self.windows = windows

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        policy = MeanOfWindows() if self.windows == "mean" else self.fusion
        views = policy(waveform, lengths, self.frontend)
        parts = [views] if self.training else views.split(ROWS)  # in training, batch norm sees the whole batch
        features = torch.cat([self.encode_views(part) for part in parts])
        return average_by_row(features, views.row, len(lengths))

    def parts_to_compile(self) -> list[nn.Module]:
        """All but the log-mel, which stays as it is, and what depends on the lengths of clips."""
        others = {"frontend", "fusion", "spec_augment", "bn0"}
        return [module for name, module in self.named_children() if name not in others]

    def encode_views(self, views: Views) -> Tensor:
        """Views of n windows -> (n, output_dim)."""
        log_mel = views.log_mel.expand(-1, self.fusion.num_views, -1, -1)
        normalised = self.bn0(log_mel.transpose(1, 3)).transpose(1, 3)  # (n, views, frames, n_mels)
        if self.spec_augment is not None:
            normalised = self.spec_augment(normalised)
        if self.training and self.num_kept < self.frontend.num_frames:
            normalised = choose_frames(normalised, self.num_kept)
        return self.encode(normalised, views.is_longer)

    def encode(self, log_mel: Tensor, is_longer: Tensor) -> Tensor:
        raise NotImplementedError

    def drop_frames(self, share: float) -> None:
        kept = round((1 - share) * self.frontend.num_frames)
        if kept < self.shortest_frames:
            raise ValueError(
                f"augmentation.frame_out={share} keeps {kept} of {self.frontend.num_frames} frames, and "
                f"{type(self).__name__} needs {self.shortest_frames}; lower it, or raise audio_encoder.frontend.window"
            )
        self.num_kept = kept

    def find_merged(self, is_longer: Tensor, device: torch.device) -> Tensor | None:
        """Rows (n,) on the device whose local features are merged inside the encoder; None: no row."""
        if not (self.fusion.merge and is_longer.any()):
            return None
        return is_longer.nonzero().flatten().to(device, non_blocking=True)


def choose_frames(log_mel: Tensor, count: int) -> Tensor:
    """Random frames of each row, in order: (n, views, frames, n_mels) -> (n, views, count, n_mels).

    The views of a row keep the same frames. Koutini et al. 2022 (PaSST) drop columns of patches (structured Patchout).
    """
    chosen = torch.rand(len(log_mel), log_mel.shape[2]).argsort(dim=1)[:, :count].sort(dim=1).values
    rows = torch.arange(len(log_mel))[:, None]
    rows, chosen = (index.to(log_mel.device, non_blocking=True) for index in (rows, chosen))
    return log_mel.transpose(1, 2)[rows, chosen].transpose(1, 2)


def find_sample_rate(node: Mapping[str, Any]) -> int:
    """Sample rate in Hz of an audio encoder's config node: its own key, or that of its frontend.

    Raises:
        ValueError: the node has no sample rate.
    """
    for part in (node, node.get("frontend", {})):
        if "sample_rate" in part:
            return part["sample_rate"]
    raise ValueError("this audio_encoder has no sample_rate; set audio_encoder.sample_rate")


def average_by_row(features: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Mean of the rows of each clip: features (n, width), row (n,) on the CPU, ascending -> (num_rows, width)."""
    if len(features) == num_rows:
        return features
    clips = features.split(row.bincount(minlength=num_rows).tolist())
    return torch.stack([clip.mean(dim=0) for clip in clips])


def concat_local_views(features: Tensor, rows: int, width: int) -> Tensor:
    """Concatenate the three local features of each row along the width, cut or zero-padded on the right to `width`.

    features (rows * 3, channels, height, local_width) -> (rows, channels, height, width), as wide as the global ones.
    """
    _, channels, height, local_width = features.shape
    features = features.view(rows, 3, channels, height, local_width).permute(0, 2, 3, 1, 4).flatten(3)
    return nn.functional.pad(features, (0, width - features.shape[3]))  # a negative pad cuts


def merge_longer(merge: nn.Module, features: Tensor, local: Tensor, longer: Tensor) -> Tensor:
    """Merge local into global features of the rows `longer` (n,); the other rows are unchanged.

    features (batch, channels, height, width), local (n, channels, height, width) -> (batch, channels, height, width)
    """
    merged = merge(features[longer], local)
    return features.index_copy(0, longer, merged.to(features.dtype))

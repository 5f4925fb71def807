"""Clips longer than the window: which views of them the encoder sees, and how their features merge.

Wu et al. 2023 (LAION-CLAP), section 2.3; Dai et al. 2021 (attentional feature fusion).
A policy (`OneWindow`, `MeanOfWindows`, `GlobalAndLocal`) cuts views of waveforms (batch, samples), given their lengths
(batch,) on the CPU, where they are read without waiting for the device; a merge (`DAF`, `AFF`, `IAFF`) is built by the
encoder at the width of its first features. Clips up to the window are not fused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from clap.audio import LogMelSpectrogram

ROWS = 128  # views in memory at once in evaluation: of long clips there may be hundreds


@dataclass
class Views:
    """Views of clips: the input of the network.

    log_mel (n, views, frames, n_mels). On the CPU: is_longer (n,), rows with different views; row (n,), clip index of
    each row.
    """

    log_mel: Tensor
    is_longer: Tensor
    row: Tensor

    def split(self, size: int) -> "list[Views]":
        """Consecutive parts of at most `size` rows."""
        fields = (self.log_mel, self.is_longer, self.row)
        return [Views(*part) for part in zip(*(field.split(size) for field in fields), strict=True)]


class OneWindow(nn.Module):
    """No fusion: one window of a long clip, random in training, the middle one otherwise."""

    num_views = 1
    whole_clip = False
    merge = None
    description = "one window, random in training and the middle one in evaluation"

    def forward(self, waveform: Tensor, lengths: Tensor, frontend: LogMelSpectrogram) -> Views:
        if waveform.shape[1] > frontend.num_samples:
            waveform = self.cut(waveform, lengths, frontend.num_samples)
        log_mel = frontend.full_window(waveform, lengths)
        rows = torch.arange(len(lengths))
        return Views(log_mel[:, None], torch.zeros_like(rows, dtype=torch.bool), rows)

    def cut(self, waveform: Tensor, lengths: Tensor, num_samples: int) -> Tensor:
        """(batch, samples) -> (batch, num_samples), a window of each clip."""
        start = self.choose_starts((lengths - num_samples).clamp(min=0)).to(waveform.device, non_blocking=True)
        return waveform.gather(1, start[:, None] + torch.arange(num_samples, device=waveform.device))

    def choose_starts(self, spare: Tensor) -> Tensor:
        """First sample of each clip's window (batch,), given the spare samples of each clip (batch,)."""
        if not self.training:
            return spare // 2
        return (torch.rand(len(spare)) * (spare + 1)).long().minimum(spare)  # a product near 1 may round up


class MeanOfWindows(nn.Module):
    """The encoder's outputs for evenly spaced windows that cover the clip are averaged."""

    num_views = 1
    whole_clip = True
    merge = None
    description = "evenly spaced windows, whose outputs are averaged"

    def forward(self, waveform: Tensor, lengths: Tensor, frontend: LogMelSpectrogram) -> Views:
        cuts, rows = [], []
        for row, length in enumerate(lengths.tolist()):
            for start in window_starts(length, frontend.num_samples):
                cuts.append(waveform[row, start : min(start + frontend.num_samples, length)])
                rows.append(row)
        row = torch.tensor(rows)
        log_mels = []
        for start in range(0, len(cuts), ROWS):
            padded = pad_sequence(cuts[start : start + ROWS], batch_first=True)
            log_mels.append(frontend.full_window(padded, lengths[row[start : start + ROWS]]))
        log_mel = torch.cat(log_mels)
        return Views(log_mel[:, None], torch.zeros_like(row, dtype=torch.bool), row)


class GlobalAndLocal(nn.Module):
    """Four views of a long clip: the full clip resized to the window, and windows from its front, middle and back.

    The local views start at random in training and evenly spaced otherwise. Views are cut from the log-mel of the full
    clip. Without `merge` the four views are the input channels of the encoder (`channel_map`).

    Args:
        merge: builds the module that merges global and local features, given their channels.
    """

    num_views = 4
    whole_clip = True

    def __init__(self, merge: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.merge = merge

    @property
    def description(self) -> str:
        name = getattr(getattr(self.merge, "func", self.merge), "__name__", None)
        how = f"whose features {name} merges" if name else "as input channels"
        return f"a shrunken global view and three local windows, {how}"

    def forward(self, waveform: Tensor, lengths: Tensor, frontend: LogMelSpectrogram) -> Views:
        # A clip longer by less than one hop has as many frames as the window and is not fused.
        is_longer = lengths // frontend.hop_length + 1 > frontend.num_frames
        clips = [clip[:length] for clip, length in zip(waveform, lengths.tolist(), strict=True)]
        short = [row for row, clip in enumerate(clips) if len(clip) <= frontend.num_samples]
        longer = [row for row, clip in enumerate(clips) if len(clip) > frontend.num_samples]
        views = {}
        if short:
            windows = torch.stack([waveform[row, : frontend.num_samples] for row in short])
            filled = frontend.full_window(windows, lengths[short])
            views |= {row: window.expand(4, -1, -1) for row, window in zip(short, filled, strict=True)}
        fulls = frontend.whole_clips([clips[row] for row in longer])
        views |= {row: self.cut(full, frontend.num_frames) for row, full in zip(longer, fulls, strict=True)}
        log_mel = torch.stack([views[row] for row in range(len(clips))])
        return Views(log_mel, is_longer, torch.arange(len(clips)))

    def cut(self, log_mel: Tensor, num_frames: int) -> Tensor:
        """log_mel (time, n_mels) of a longer clip -> its views (4, num_frames, n_mels)."""
        if len(log_mel) == num_frames:
            return log_mel.expand(4, -1, -1)
        return cut_views(log_mel, num_frames, self.choose_starts(len(log_mel), num_frames))

    def choose_starts(self, total: int, num_frames: int) -> list[int]:
        """First frames of the front, middle and back view of a clip of `total` frames."""
        if not self.training:
            return [0, (total - num_frames) // 2, total - num_frames]
        return [int(torch.randint(first, last + 1, ())) for first, last in local_start_ranges(total, num_frames)]


def window_starts(length: int, num_samples: int) -> list[int]:
    """Starts of the fewest evenly spaced windows that cover `length` samples."""
    count = max(1, -(-length // num_samples))
    return [round(i * (length - num_samples) / max(1, count - 1)) for i in range(count)]


def local_start_ranges(total: int, num_frames: int) -> list[tuple[int, int]]:
    """First and last start of the front, middle and back view: the possible starts in three nearly equal groups."""
    groups = torch.arange(total - num_frames + 1).tensor_split(3)
    return [(int(group[0]), int(group[-1])) if len(group) else (0, 0) for group in groups]


def cut_views(log_mel: Tensor, num_frames: int, starts: Sequence[int]) -> Tensor:
    """log_mel (time, n_mels) -> (4, num_frames, n_mels): global view first, then the local ones."""
    return torch.stack([shrink(log_mel, num_frames), *(log_mel[start : start + num_frames] for start in starts)])


def shrink(log_mel: Tensor, num_frames: int) -> Tensor:
    """Global view: (time, n_mels) -> (num_frames, n_mels), bilinear without antialiasing, as in the published code."""
    size = (num_frames, log_mel.shape[1])
    return F.interpolate(log_mel[None, None], size, mode="bilinear", align_corners=False, antialias=False)[0, 0]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that handles a single value per channel in training, such as the pooled features of one longer clip.

    One value has no variance: it is normalised by the running statistics, as in evaluation, and does not change them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


@contextmanager
def fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside normalise as they do outside, and their running statistics stay as they are."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def channel_attention(channels: int, reduction: int, *, pooled: bool) -> nn.Sequential:
    """Bottleneck of 1x1 convolutions, per position or on the clip's average (Dai et al. 2021, figure 2)."""
    hidden = max(1, channels // reduction)
    layers = [
        nn.Conv2d(channels, hidden, kernel_size=1),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, kernel_size=1),
        BatchNorm(channels),
    ]
    return nn.Sequential(*([nn.AdaptiveAvgPool2d(1)] if pooled else []), *layers)


class DAF(nn.Module):
    """Sum of global and local features (n, channels, height, width), no parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual


class AFF(nn.Module):
    """Attentional feature fusion (Dai et al. 2021, equation 4; with the sum doubled, as in the published models).

    x (global) and residual (local), both (n, channels, height, width) -> same shape.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.local_att = channel_attention(channels, reduction, pooled=False)
        self.global_att = channel_attention(channels, reduction, pooled=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        total = x + residual
        w = torch.sigmoid(self.local_att(total) + self.global_att(total))
        return 2 * x * w + 2 * residual * (1 - w)


class IAFF(nn.Module):
    """Iterative attentional feature fusion (Dai et al. 2021, equation 5).

    x (global) and residual (local), both (n, channels, height, width) -> same shape.

    Args:
        shared_global_att: the second pass uses the global branch of the first, not its own: a bug of the published
            code, with which its weights were trained. False for new models.
    """

    def __init__(self, channels: int, *, reduction: int = 4, shared_global_att: bool = False) -> None:
        super().__init__()
        self.shared_global_att = shared_global_att
        self.local_att = channel_attention(channels, reduction, pooled=False)
        self.global_att = channel_attention(channels, reduction, pooled=True)
        self.local_att2 = channel_attention(channels, reduction, pooled=False)
        self.global_att2 = channel_attention(channels, reduction, pooled=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        total = x + residual
        w = torch.sigmoid(self.local_att(total) + self.global_att(total))
        mixed = x * w + residual * (1 - w)
        second_global = self.global_att if self.shared_global_att else self.global_att2
        w = torch.sigmoid(self.local_att2(mixed) + second_global(mixed))
        return x * w + residual * (1 - w)

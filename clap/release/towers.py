"""The two towers of a model as graphs of tensors, which `torch.onnx` traces once for all lengths and batch sizes.

`clap.fusion` cuts the views of each clip in a loop over the batch. Here one expression does it for all clips, and the
number of views depends on the shape of the batch only.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clap.audio_encoder.base import LogMelEncoder
from clap.fusion import AFF, DAF, IAFF, GlobalAndLocal, MeanOfWindows, OneWindow

POLICIES = (OneWindow, MeanOfWindows, GlobalAndLocal)


@dataclass
class Rows:
    """Which rows of the batch in progress are merged, (batch,) bool."""

    is_longer: Tensor | None = None


class MergedRows(nn.Module):
    """A merge of global and local features that leaves the rows of short clips as they are."""

    def __init__(self, merge: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.merge, self.rows = merge, rows

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.where(self.rows.is_longer[:, None, None, None], self.merge(x, residual), x)


class AudioTower(nn.Module):
    """waveform (batch, samples) float32, lengths (batch,) int64 -> audio_embedding (batch, embed_dim), unit norm.

    Samples beyond a clip's length are ignored. The embeddings are those of `Clap.embed_audio` in evaluation.

    Args:
        clap: a model in evaluation mode, which is copied.

    Raises:
        ValueError: its audio encoder or its fusion has no such form.
    """

    def __init__(self, clap: nn.Module) -> None:
        super().__init__()
        encoder = copy.deepcopy(clap.audio_encoder)
        if not isinstance(encoder, LogMelEncoder):
            raise ValueError(
                f"{type(encoder).__name__} cannot be exported: it has no log-mel spectrogram; allowed: subclasses of "
                "LogMelEncoder, such as HTSAT, Cnn14 and TimmBackbone"
            )
        self.policy = MeanOfWindows() if encoder.windows == "mean" else encoder.fusion
        if type(self.policy) not in POLICIES:
            allowed = ", ".join(policy.__name__ for policy in POLICIES)
            raise ValueError(f"fusion={type(self.policy).__name__} cannot be exported; allowed: {allowed}")
        self.encoder, self.projection, self.rows = encoder, copy.deepcopy(clap.audio_projection), Rows()
        merges = {name: module for name, module in encoder.named_modules() if isinstance(module, DAF | AFF | IAFF)}
        for name, merge in merges.items():
            parent, _, last = name.rpartition(".")
            setattr(encoder.get_submodule(parent), last, MergedRows(merge, self.rows))
        if merges:
            encoder.find_merged = lambda is_longer, device: torch.arange(is_longer.shape[0], device=device)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        if isinstance(self.policy, MeanOfWindows):
            features = self.average_windows(waveform, lengths)
        elif isinstance(self.policy, GlobalAndLocal):
            features = self.fuse(waveform, lengths)
        else:
            features = self.encode(self.cut_middle(waveform, lengths)[:, None], torch.zeros_like(lengths) > 0)
        return F.normalize(self.projection(features), dim=-1)

    def encode(self, log_mel: Tensor, is_longer: Tensor) -> Tensor:
        """log_mel (n, views, frames, n_mels), is_longer (n,) -> (n, output_dim)."""
        self.rows.is_longer = is_longer
        views = log_mel.expand(-1, self.encoder.fusion.num_views, -1, -1)
        return self.encoder.encode(self.encoder.bn0(views.transpose(1, 3)).transpose(1, 3), is_longer)

    def cut(self, waveform: Tensor, starts: Tensor) -> Tensor:
        """Windows of the clips: (batch, samples), starts (batch, windows) -> (batch, windows, num_samples)."""
        index = starts[:, :, None] + torch.arange(self.encoder.frontend.num_samples, device=waveform.device)
        index = index.clamp(max=waveform.shape[1] - 1)  # (batch, windows, num_samples)
        return waveform.gather(1, index.flatten(1)).view(index.shape)

    def cut_middle(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel of the middle window of each clip, or of the filled clip, (batch, frames, n_mels)."""
        frontend = self.encoder.frontend
        starts = (lengths - frontend.num_samples).clamp(min=0) // 2
        return frontend.full_window(self.cut(waveform, starts[:, None])[:, 0], lengths)

    def average_windows(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Mean over evenly spaced windows of the encoder's outputs, (batch, output_dim)."""
        frontend, size = self.encoder.frontend, self.encoder.frontend.num_samples
        number = torch.arange((waveform.shape[1] + size - 1) // size, device=waveform.device)[None]  # (1, windows)
        count = ((lengths + size - 1) // size).clamp(min=1)[:, None]  # (batch, 1)
        spare = (lengths - size).clamp(min=0)[:, None]
        starts = (number * spare / (count - 1).clamp(min=1).double()).round().long().minimum(spare)  # (batch, windows)
        windows = self.cut(waveform, starts).flatten(0, 1)  # (batch * windows, num_samples)
        log_mel = frontend.full_window(windows, lengths[:, None].expand(starts.shape).flatten())
        features = self.encode(log_mel[:, None], torch.zeros_like(starts).flatten() > 0).unflatten(0, starts.shape)
        return (features * (number < count)[:, :, None]).sum(dim=1) / count

    def fuse(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Outputs for a global and three local views of longer clips, (batch, output_dim)."""
        frontend = self.encoder.frontend
        frames = lengths // frontend.hop_length + 1  # of the full clips
        views = self.cut_views(self.full_log_mel(waveform, lengths), frames)
        filled = self.cut_middle(waveform, lengths)[:, None]
        views = torch.where((lengths > frontend.num_samples)[:, None, None, None], views, filled)
        return self.encode(views, frames > frontend.num_frames)

    def full_log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel (batch, time, n_mels) of the full clips, each reflected at its own end."""
        half = self.encoder.frontend.n_fft // 2
        index = (torch.arange(waveform.shape[1] + 2 * half, device=waveform.device) - half).abs()[None]
        last = lengths[:, None] - 1
        index = torch.where(index > last, 2 * last - index, index).clamp(min=0)  # (batch, samples + 2 * half)
        return self.encoder.frontend(waveform.gather(1, index), center=False)

    def cut_views(self, log_mel: Tensor, frames: Tensor) -> Tensor:
        """log_mel (batch, time, n_mels), frames (batch,) of each clip -> its views (batch, 4, num_frames, n_mels)."""
        count = self.encoder.frontend.num_frames
        frame = torch.arange(count, device=log_mel.device)[None]  # (1, num_frames)
        spare = (frames - count).clamp(min=0)[:, None]
        local = [take_frames(log_mel, start + frame) for start in (torch.zeros_like(spare), spare // 2, spare)]
        place = ((frame + 0.5) * (frames[:, None] / count) - 0.5).clamp(min=0)  # bilinear, as in `fusion.shrink`
        before, last = place.long(), (frames - 1)[:, None]
        weight = (place - before)[:, :, None]
        lower, upper = (take_frames(log_mel, index.minimum(last)) for index in (before, before + 1))
        return torch.stack([(1 - weight) * lower + weight * upper, *local], dim=1)


def take_frames(log_mel: Tensor, index: Tensor) -> Tensor:
    """log_mel (batch, time, n_mels), index (batch, frames) -> (batch, frames, n_mels)."""
    index = index.clamp(max=log_mel.shape[1] - 1)[:, :, None].expand(-1, -1, log_mel.shape[2])
    return log_mel.gather(1, index)


class TextTower(nn.Module):
    """token_ids and token_mask (batch, tokens) int64, 1 on tokens -> text_embedding (batch, embed_dim), unit norm.

    Args:
        clap: a model in evaluation mode, which is copied.
    """

    def __init__(self, clap: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = copy.deepcopy(clap.text_encoder), copy.deepcopy(clap.text_projection)

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        return F.normalize(self.projection(self.encoder(token_ids, token_mask > 0)), dim=-1)

"""Cnn14 (Kong et al. 2020, PANNs): six convolution blocks on the log-mel."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clap.audio import LogMelSpectrogram, SpecAugment
from clap.audio_encoder.base import LogMelEncoder, concat_local_views, merge_longer
from clap.fusion import BatchNorm, fixed_statistics

NUM_BLOCKS = 6
SHORTEST_FRAMES = 2 ** (NUM_BLOCKS - 1)


class Cnn14(LogMelEncoder):
    """Log-mel (batch, views, frames, n_mels) -> (batch, 32 * width).

    Args:
        width: channels of the first block; it doubles at each of the next. 64 in the paper.
        dropout: after each block; the last two layers have 0.5 in the paper.
    """

    shortest_frames = SHORTEST_FRAMES

    def __init__(
        self,
        *,
        width: int = 64,
        dropout: float = 0.2,
        last_dropout: float = 0.5,
        frontend: LogMelSpectrogram,
        fusion: nn.Module | None = None,
        spec_augment: SpecAugment | None = None,
    ) -> None:
        super().__init__(frontend, fusion, spec_augment)
        if frontend.num_frames < SHORTEST_FRAMES or frontend.n_mels < SHORTEST_FRAMES:
            raise ValueError(
                f"Cnn14 halves its input five times and needs {SHORTEST_FRAMES} frames and mel bins; the window has "
                f"{frontend.num_frames} and {frontend.n_mels}; raise window or n_mels of audio_encoder.frontend"
            )
        make_merge = self.fusion.merge
        self.in_channels = 1 if make_merge else self.fusion.num_views
        self.dropout, self.last_dropout = dropout, last_dropout
        self.is_checkpointed = False
        channels = [self.in_channels, *(width * 2**i for i in range(NUM_BLOCKS))]
        for i in range(NUM_BLOCKS):
            setattr(self, f"conv_block{i + 1}", ConvBlock(channels[i], channels[i + 1]))
        self.output_dim = channels[-1]
        self.fc1 = nn.Linear(self.output_dim, self.output_dim)
        if make_merge:
            self.local_proj = nn.Sequential(
                nn.Conv2d(1, width, kernel_size=5, stride=(6, 2), padding=2), nn.BatchNorm2d(width), nn.ReLU()
            )
            self.merge = make_merge(width)

    def encode(self, log_mel: Tensor, is_longer: Tensor) -> Tensor:
        x = self.run_block(1, log_mel[:, : self.in_channels])  # (batch, width, frames / 2, n_mels / 2)
        if (longer := self.find_merged(is_longer, x.device)) is not None:
            x = self.merge_local(x, log_mel, longer)
        x = F.dropout(x, self.dropout, self.training)
        for i in range(2, NUM_BLOCKS + 1):
            x = self.run_block(i, x)
            x = F.dropout(x, self.dropout, self.training)
        x = x.mean(dim=3)  # (batch, channels, frames / 32)
        x = x.amax(dim=2) + x.mean(dim=2)
        x = F.relu(self.fc1(F.dropout(x, self.last_dropout, self.training)))
        return F.dropout(x, self.last_dropout, self.training)

    def run_block(self, number: int, x: Tensor) -> Tensor:
        block, pool = getattr(self, f"conv_block{number}"), number < NUM_BLOCKS
        if not (self.is_checkpointed and self.training):
            return block(x, pool=pool)
        contexts = partial(_contexts, block)
        return checkpoint(block, x, pool=pool, use_reentrant=False, context_fn=contexts)

    def checkpoint_activations(self) -> None:
        self.is_checkpointed = True

    def merge_local(self, x: Tensor, log_mel: Tensor, longer: Tensor) -> Tensor:
        """Merge the local views after the first block: a strided convolution, its outputs concatenated in time."""
        local = log_mel[longer, 1:].flatten(0, 1).unsqueeze(1)  # (longer * 3, 1, frames, n_mels)
        local = self.local_proj(local)  # (longer * 3, width, frames / 6, n_mels / 2)
        local = concat_local_views(local.transpose(2, 3), longer.shape[0], x.shape[2]).transpose(2, 3)
        return merge_longer(self.merge, x, local, longer)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first and the second forward pass of a checkpointed block: the first updates batch statistics."""
    return nullcontext(), fixed_statistics(block)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then 2x2 average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = BatchNorm(out_channels)
        self.bn2 = BatchNorm(out_channels)
        for conv in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, x: Tensor, *, pool: bool) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, kernel_size=2) if pool else x

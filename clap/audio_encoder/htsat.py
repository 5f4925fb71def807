"""HTS-AT (Chen et al. 2022): a Swin transformer on the log-mel folded into a square image.

The trunk is timm's Swin, so published weights load after renaming keys: `layers.{i}.downsample` of HTS-AT is
`trunk.layers.{i+1}.downsample` here, `mel_conv2d` and `fusion_model` of `patch_embed` are `local_proj` and `merge` of
`trunk.patch_embed`; all other names are the paper's.
"""

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from clap.audio import LogMelSpectrogram, SpecAugment
from clap.audio_encoder.base import LogMelEncoder, concat_local_views, merge_longer


class HTSAT(LogMelEncoder):
    """Log-mel (batch, views, frames, n_mels) -> (batch, embed_dim * 2 ** (stages - 1)), the mean of the last tokens.

    Args:
        embed_dim: width of the first stage; it doubles at each of the next.
        image_size: side of the square into which the log-mel is folded, as image_size / n_mels stacked segments of
            time; at most image_size ** 2 / n_mels frames fit.
        patch_size: side of a token, in frames and in mel bins.
        window_size: side of an attention window, in tokens.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        image_size: int = 256,
        patch_size: int = 4,
        window_size: int = 8,
        drop_path: float = 0.1,
        frontend: LogMelSpectrogram,
        fusion: nn.Module | None = None,
        spec_augment: SpecAugment | None = None,
    ) -> None:
        super().__init__(frontend, fusion, spec_augment)
        self.image_size = image_size
        self.check_sizes(patch_size, embed_dim, depths, num_heads)
        self.output_dim = embed_dim * 2 ** (len(depths) - 1)
        self.trunk = SwinTransformer(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=1,
            num_classes=0,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path,
        )
        self.trunk.patch_embed = PatchEmbed(patch_size, embed_dim, self.fusion)
        for block in (block for stage in self.trunk.layers for block in stage.blocks):
            if block.attn_mask is not None:
                # The published -100 leaves attention weights of exp(-100), subnormal numbers with which a CPU
                # multiplies thirty times as slowly. Zero weights give the same sums.
                block.attn_mask.masked_fill_(block.attn_mask < 0, -torch.inf)

    def check_sizes(self, patch_size: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
        n_mels, max_frames = self.frontend.n_mels, self.image_size**2 // self.frontend.n_mels
        if self.image_size % n_mels or n_mels % patch_size:
            raise ValueError(
                f"n_mels={n_mels} must divide image_size={self.image_size} and be a multiple of "
                f"patch_size={patch_size}; set audio_encoder.frontend.n_mels"
            )
        if self.frontend.num_frames > max_frames:
            raise ValueError(
                f"a window of {self.frontend.num_frames} frames does not fit into image_size={self.image_size}, which "
                f"holds {max_frames}; lower audio_encoder.frontend.window or raise audio_encoder.frontend.hop_length"
            )
        if len(num_heads) != len(depths):
            raise ValueError(
                f"num_heads={list(num_heads)} and depths={list(depths)} must have one entry for each stage; "
                "set audio_encoder.num_heads"
            )
        for stage, heads in enumerate(num_heads):
            if embed_dim * 2**stage % heads:
                raise ValueError(
                    f"num_heads={list(num_heads)}: stage {stage + 1} has a width of {embed_dim * 2**stage}, not a "
                    f"multiple of {heads}; set audio_encoder.embed_dim or audio_encoder.num_heads"
                )

    def encode(self, log_mel: Tensor, is_longer: Tensor) -> Tensor:
        patch_embed = self.trunk.patch_embed
        image = self.fold(log_mel[:, : patch_embed.in_channels])
        longer = self.find_merged(is_longer, log_mel.device)
        local = None if longer is None else self.fold(log_mel[longer, 1:])
        x = patch_embed(image, local, longer)  # (batch, height, width, embed_dim)
        x = self.trunk.norm(self.trunk.layers(x))
        return x.mean(dim=(1, 2))

    def parts_to_compile(self) -> list[nn.Module]:
        return [block for stage in self.trunk.layers for block in stage.blocks]

    def checkpoint_activations(self) -> None:
        self.trunk.set_grad_checkpointing()

    def fold(self, log_mel: Tensor) -> Tensor:
        """Fold the log-mel into a square: segments of time, stacked along the frequency axis.

        (batch, views, frames, n_mels) -> (batch, views, image_size, image_size)
        """
        batch, views, frames, n_mels = log_mel.shape
        segments = self.image_size // n_mels
        if frames < self.image_size * segments:
            size = (self.image_size * segments, n_mels)
            log_mel = F.interpolate(log_mel, size, mode="bicubic", align_corners=True)
        x = log_mel.view(batch, views, segments, self.image_size, n_mels)
        return x.transpose(3, 4).reshape(batch, views, self.image_size, self.image_size)


class PatchEmbed(nn.Module):
    """Image (batch, channels, size, size) -> tokens (batch, height, width, embed_dim).

    The local views (n, 3, size, size) of the rows `longer` (n,) are merged with their global view before the norm.
    Wu et al. 2023, section 2.3: local views pass a convolution three patches wide, so that three of them concatenated
    are as wide as the global view.
    """

    def __init__(self, patch_size: int, embed_dim: int, fusion: nn.Module) -> None:
        super().__init__()
        make_merge = fusion.merge
        self.in_channels = 1 if make_merge else fusion.num_views
        self.proj = nn.Conv2d(self.in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)
        if make_merge:
            local_size = (patch_size, 3 * patch_size)
            self.local_proj = nn.Conv2d(1, embed_dim, kernel_size=local_size, stride=local_size)
            self.merge = make_merge(embed_dim)

    def forward(self, image: Tensor, local: Tensor | None, longer: Tensor | None) -> Tensor:
        tokens = self.proj(image)  # (batch, embed_dim, height, width)
        if local is not None:
            local = self.local_proj(local.flatten(0, 1).unsqueeze(1))  # (n * 3, embed_dim, height, width / 3)
            local = concat_local_views(local, longer.shape[0], tokens.shape[3])
            tokens = merge_longer(self.merge, tokens, local, longer)
        return self.norm(tokens.permute(0, 2, 3, 1))

"""Any timm image backbone on the log-mel, by name."""

import timm
from timm.layers import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from clap.audio import LogMelSpectrogram, SpecAugment
from clap.audio_encoder.base import LogMelEncoder
from clap.config.values import suggest


class TimmBackbone(LogMelEncoder):
    """Log-mel (batch, views, frames, n_mels) -> (batch, output_dim), the backbone's pooled features.

    The log-mel is one image of n_mels rows and `frames` columns; it is resized for backbones with a fixed
    image size (most vision transformers).

    Args:
        name: a model of `timm.list_models()`, such as `convnext_nano`.
        pretrained: True: timm's ImageNet weights, averaged over the colour channels; False: random weights.

    Raises:
        ValueError: unknown name, or a fusion that merges features inside the encoder (daf, aff, iaff).
    """

    loads_weights = True

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        drop_path: float = 0.0,
        frontend: LogMelSpectrogram,
        fusion: nn.Module | None = None,
        spec_augment: SpecAugment | None = None,
    ) -> None:
        super().__init__(frontend, fusion, spec_augment)
        if not isinstance(pretrained, bool):
            raise ValueError(f"audio_encoder.pretrained={pretrained}: with audio_encoder=timm, set it to true or false")
        if self.fusion.merge:
            raise ValueError(
                "fusion inside the encoder (daf, aff, iaff) needs HTS-AT or Cnn14; with audio_encoder=timm choose "
                "fusion=none, mean or channel_map"
            )
        if not timm.is_model(name):
            hint = suggest(name, timm.list_models())
            raise ValueError(f"timm has no model {name!r}{hint}; set audio_encoder.name to one of timm.list_models()")
        self.backbone = timm.create_model(
            name,
            pretrained=pretrained,
            in_chans=self.fusion.num_views,
            num_classes=0,
            drop_path_rate=drop_path or None,  # None is not passed on; some models do not have this argument
        )
        config = self.backbone.pretrained_cfg
        self.image_size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
        self.output_dim = self.backbone.head_hidden_size

    @classmethod
    def find_weights(cls, pretrained: bool | str, name: str | None) -> str | None:
        return timm.get_pretrained_cfg(name).hf_hub_id if pretrained else None

    def checkpoint_activations(self) -> None:
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.backbone.modules()):
            raise ValueError(
                "trainer.activation_checkpointing=true would update the batch statistics of audio_encoder.name="
                f"{self.backbone.pretrained_cfg['architecture']} twice a step; set it to false, or choose a backbone "
                "without batch norm"
            )
        self.backbone.set_grad_checkpointing()

    def drop_patches(self, share: float) -> None:
        if isinstance(self.backbone, VisionTransformer):
            dropout = PatchDropout(share, num_prefix_tokens=self.backbone.num_prefix_tokens)
            self.backbone.patch_drop = dropout.train(self.training)
        elif share:
            name = self.backbone.pretrained_cfg["architecture"]
            raise ValueError(
                f"audio_encoder.name={name} cannot drop patches; set augmentation.patch_out=0, or a plain vision "
                "transformer, such as vit_tiny_patch16_224"
            )

    def encode(self, log_mel: Tensor, is_longer: Tensor) -> Tensor:
        image = log_mel.transpose(2, 3)  # (batch, views, n_mels, frames)
        if self.image_size is not None:
            image = F.interpolate(image, self.image_size, mode="bilinear")
        return self.backbone(image)

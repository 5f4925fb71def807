"""The dual encoder: `Clap` projects the outputs of an audio and a text encoder into one space.

Radford et al. 2021 (CLIP); Elizalde et al. 2023 and Wu et al. 2023 (CLAP).
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clap import checkpoint, saving
from clap.audio_encoder.base import AudioEncoder
from clap.audio_model import AudioModel
from clap.config import read_config
from clap.config.secrets import hide_secrets
from clap.dataset.loader import Collate
from clap.lora import merge_adapters
from clap.loss import MAX_LOGIT_SCALE, check_logit_scale
from clap.parts import (
    build_parts,
    check_has_no_head,
    choose_parts,
    load_part,
    model_config,
    parts_to_rebuild,
    read_saved_config,
)
from clap.prompts import TEMPLATES, check_prompts, check_texts, fill_templates
from clap.published.hub import fetch_own
from clap.published.limits import check_described
from clap.published.load import apply_overrides, check_keys, load_weights, no_weights, one_line_errors, read_published
from clap.recordings import Recording
from clap.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class MLPProjection(nn.Module):
    """Linear, ReLU, Linear (Wu et al. 2023): (batch, in_dim) -> (batch, out_dim)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_dim, out_dim)
        self.linear2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))


class ResidualProjection(nn.Module):
    """Linear, then a residual GELU layer and layer norm (Elizalde et al. 2023): (batch, in_dim) -> (batch, out_dim)."""

    def __init__(self, in_dim: int, out_dim: int, *, dropout: float = 0.5, bias: bool = False) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_dim, out_dim, bias=bias)
        self.linear2 = nn.Linear(out_dim, out_dim, bias=bias)
        self.layer_norm = nn.LayerNorm(out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear1(x)
        return self.layer_norm(x + self.dropout(self.linear2(F.gelu(x))))


class Clap(AudioModel):
    """Waveforms and captions to unit-norm embeddings in one space.

    `Clap(config=...)` is `Clap.from_config(...)`; otherwise the four parts are given as modules.

    Args:
        audio_encoder: (batch, samples), lengths (batch,) on the CPU -> (batch, audio_encoder.output_dim).
        text_encoder: token ids, mask (batch, tokens) -> (batch, text_encoder.output_dim); has a `tokenizer`.
        init_logit_scale: initial exp(logit_scale), the inverse temperature.
        config: composed config (path or mapping) from which all parts are built.
    """

    def __init__(
        self,
        audio_encoder: AudioEncoder | None = None,
        text_encoder: nn.Module | None = None,
        audio_projection: nn.Module | None = None,
        text_projection: nn.Module | None = None,
        *,
        init_logit_scale: float = 1 / 0.07,
        config: str | Path | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if config is not None:
            self.config = check_has_no_head(model_config(read_config(config)))
            audio_encoder, text_encoder, audio_projection, text_projection = build_parts(self.config)
            init_logit_scale = self.config["init_logit_scale"]
        self.audio_encoder = audio_encoder
        self.text_encoder = text_encoder
        self.audio_projection = audio_projection
        self.text_projection = text_projection
        self.logit_scale = nn.Parameter(torch.tensor(math.log(check_logit_scale(init_logit_scale))))  # a logarithm
        self.encode_text: Callable[[Tensor, Tensor], Tensor] | None = None  # in place of a frozen, cached text encoder

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any]) -> "Clap":
        """A new model from a composed config (`train.py --cfg job`), a path or a mapping."""
        return cls(config=config)

    @classmethod
    def from_ckpt(cls, ckpt: str | os.PathLike, *, settings: Mapping[str, Any] | None = None) -> "Clap":
        """The model of a checkpoint, in evaluation mode.

        Args:
            ckpt: a checkpoint folder, a run folder (its best one), or published weights: a file of LAION-CLAP, MS-CLAP
                or Custom-CLAP, a Hugging Face ClapModel folder, or a name on the hub (owner/repository, or
                owner/repository/file).
            settings: values that replace those of the checkpoint's config, under dotted keys, such as
                {"text_encoder.tokenizer": "a/local/folder"}.

        Raises:
            FileNotFoundError, ValueError: it is missing or damaged, or its tensors do not match a known model. No code
                in it is executed.
        """
        if (own := fetch_own(ckpt)) is None:
            return cls.from_published(str(ckpt), settings)
        folder = checkpoint.find_best(own)
        config = check_has_no_head(read_saved_config(folder), str(folder))
        apply_overrides(config, settings or {})
        weights = checkpoint.read_weights(folder)
        check_keys(check_described(cls, config, weights, str(folder)).state_dict(), weights, str(folder))
        clap = cls(config=config)
        clap.load_state_dict(weights)
        return merge_adapters(clap).eval()

    @classmethod
    def from_published(cls, source: str, settings: Mapping[str, Any] | None) -> "Clap":
        (family, config, weights), source = read_published(source, settings), hide_secrets(source)
        if "embed_dim" not in config:
            raise ValueError(f"{source} contains only an audio encoder ({family}); set audio_encoder.pretrained=...")
        check_described(cls, config, weights, source)
        with no_weights(), one_line_errors(source):
            clap = cls(config=config)
        load_weights(clap, weights, source)
        return clap.eval()

    @classmethod
    def init_from(
        cls, ckpt: str | os.PathLike | None, config: Mapping[str, Any], *, overrides: Sequence[str] = ()
    ) -> "Clap":
        """A model with the weights, encoders, frontend and tokenizer of a checkpoint; None: a new model.

        Parts that `overrides` (`key=value`) name are built from `config`: a new encoder has a new projection, a new
        fusion keeps the weights of the audio encoder, and a new loss sets its logit scale.
        """
        if ckpt is None:
            return cls.from_config(config)
        source, named = cls.from_ckpt(ckpt), parts_to_rebuild(overrides, ckpt)
        stored = saving.make_self_contained(source, source.config)
        stored["init_logit_scale"] = min(round(source.logit_scale.exp().item(), 4), MAX_LOGIT_SCALE)
        clap = cls(config=choose_parts(config, stored, overrides, ckpt))
        for name, part in clap.named_children():
            if name not in named:
                load_part(part, source.get_submodule(name).state_dict(), f"{name} of {ckpt}")
            log.info("%s: %s", name, "new" if name in named else f"from {ckpt}")
        for name in sorted(named & {"fusion", "init_logit_scale"}):
            log.info("%s: new", name.removeprefix("init_"))
        if "init_logit_scale" not in named:
            clap.logit_scale.data.copy_(source.logit_scale.data)
        return clap

    def save_pretrained(self, folder: str | os.PathLike, *, huggingface: bool = True) -> None:
        """Write a checkpoint folder, atomically, for Clap.from_ckpt and `init_from=`.

        Its subfolder `huggingface` is the same model for transformers' ClapModel and ClapProcessor, if that
        architecture supports all parts (HTS-AT without fusion or with aff, RoBERTa with pooling=pooler,
        MLPProjection); otherwise the unsupported parts are logged.

        Args:
            folder: a new folder, or a checkpoint to replace.
            huggingface: False skips that subfolder, which doubles the disk space.

        Raises:
            OSError: it cannot be written, or the folder contains other files, which are kept.
        """
        saving.write_pretrained(self, Path(folder).resolve(), huggingface=huggingface)

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return self.audio_projection.linear2.out_features

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder.

        Raises:
            ValueError: the model has no text encoder.
        """
        if self.text_encoder is None:
            raise ValueError("this model has no text encoder, as models from clapcap weights, and embeds audio only")
        return self.text_encoder.tokenizer

    @property
    def collate(self) -> Collate:
        """Collate function of a DataLoader over ClapDataset: pads waveforms, tokenises captions, draws augmentation.

        Raises:
            FileNotFoundError: the tokenizer's files are missing; raised here, not in a worker of the DataLoader.
        """
        if not self.tokenizer.needs_training:
            self.tokenizer.read()
        return Collate(self.tokenizer, augmentation=self.augmentation, sample_rate=self.sample_rate)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def forward(
        self, waveform: Tensor, lengths: Tensor, token_ids: Tensor, token_mask: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Waveform (batch, samples), lengths (batch,), tokens (batch, tokens) -> two (batch, embed_dim), scale ()."""
        audio, text = self.embed_audio(waveform, lengths, features), self.embed_text(token_ids, token_mask)
        return audio, text, self.logit_scale.exp()

    def embed_audio(self, waveform: Tensor, lengths: Tensor, features: Tensor | None = None) -> Tensor:
        """Waveform (batch, samples), lengths (batch,), or outputs of the encoder -> (batch, embed_dim), unit norm."""
        features = self.audio_encoder(waveform, lengths) if features is None else features
        return F.normalize(self.audio_projection(features).float(), dim=-1)

    def embed_text(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """Token ids and mask (batch, tokens) -> (batch, embed_dim), unit norm."""
        encode = self.encode_text or self.text_encoder
        return F.normalize(self.text_projection(encode(token_ids, token_mask)).float(), dim=-1)

    def get_text_embeddings(self, captions: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Embeddings (n, embed_dim), unit norm, of n captions.

        Raises:
            ValueError: a caption is not text, or the model has no text encoder. FileNotFoundError: it has no tokenizer.
        """
        captions = check_texts([captions] if isinstance(captions, str) else captions, "caption")
        embeddings = torch.empty(len(captions), self.embed_dim, device=self.device)
        with self.inference():
            for start in range(0, len(captions), batch_size):
                tokens = [part.to(self.device) for part in self.tokenizer(captions[start : start + batch_size])]
                embeddings[start : start + batch_size] = self.embed_text(*tokens)
        return embeddings

    def compute_similarity(self, audio_embedding: Tensor, text_embedding: Tensor) -> Tensor:
        """Scaled cosine similarity, logits_per_audio (audio, text)."""
        return self.logit_scale.detach().exp() * audio_embedding @ text_embedding.T

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """(classes, embed_dim), unit norm: the mean over templates of the prompts' embeddings."""
        embedding = self.get_text_embeddings(fill_templates(class_names, templates))
        embedding = embedding.view(len(class_names), len(templates), -1)
        return F.normalize(embedding.mean(dim=1), dim=-1)

    def classify(
        self,
        audio: Recording | Iterable[Recording],
        labels: Sequence[str],
        template: str | Sequence[str] = TEMPLATES,
        *,
        sample_rate: int | None = None,
        batch_size: int = 16,
    ) -> Tensor:
        """Zero-shot classification: probabilities (n, labels), each row summing to 1.

        Args:
            audio: n files, or n waveforms at `sample_rate` Hz, as for `get_audio_embeddings`.
            template: prompt with `{}` for the label; the embeddings of several templates are averaged.

        Raises:
            ValueError: invalid labels or templates. AudioError: an invalid clip.
        """
        templates = check_prompts(labels, template)
        class_embedding = self.embed_classes(labels, templates)  # first, so that a tokenizer error appears early
        audio_embedding = self.get_audio_embeddings(audio, sample_rate, batch_size=batch_size)
        return self.compute_similarity(audio_embedding, class_embedding).softmax(dim=1)

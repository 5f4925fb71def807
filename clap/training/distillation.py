"""Distillation: the correspondences of audio and captions that trained models estimate, as targets.

Primus et al. 2024, Estimated audio-caption correspondences improve language-based audio retrieval. A random caption of
another clip may describe a clip as well, which the contrastive loss does not know.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import resample

from clap.dataset.loader import Batch
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.process_group import is_distributed
from clap.training.parallel import GatherRows


class DistillationLoss(SymmetricCrossEntropyLoss):
    """Symmetric cross entropy with the pairs, plus `weight` times that with the correspondences of the teachers.

    A teacher's correspondences of a clip are the softmax of its own scaled similarities over the captions of the batch,
    and likewise of a caption over the clips; several teachers are averaged. Each embeds the waveforms of the batch,
    resampled to its rate, and the captions, by its own tokenizer, in evaluation mode and without gradients.

    Args:
        teachers: checkpoints, as `Clap.from_ckpt` takes them.
        weight: of the teachers' correspondences; the pairs have 1.

    Raises:
        ValueError: there is no teacher, or one without a text encoder, or the weight is negative.
    """

    def __init__(
        self,
        *,
        teachers: Sequence[str],
        weight: float = 1.0,
        init_logit_scale: float = 14.2857,
        learn_logit_scale: bool = True,
    ) -> None:
        super().__init__(init_logit_scale=init_logit_scale, learn_logit_scale=learn_logit_scale)
        if not teachers:
            raise ValueError("loss.teachers=[] has no teacher; give checkpoints, or set loss=symmetric_cross_entropy")
        if not 0 <= weight < math.inf:
            raise ValueError(f"loss.weight={weight} must be finite and at least 0")
        self.weight = weight
        # In a tuple they are no submodules, which the optimizer would train and checkpoints would contain.
        self.teachers = tuple(Clap.from_ckpt(teacher).requires_grad_(False) for teacher in teachers)
        for teacher, name in zip(self.teachers, teachers, strict=True):
            if teacher.text_encoder is None:
                raise ValueError(f"loss.teachers: {name} has no text encoder; give another checkpoint")
        self.targets: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def estimate(self, batch: Batch, rows: list[int], *, sample_rate: int, size: int | None = None) -> None:
        """Estimate the correspondences of the global batch for the next `forward`; collective.

        Args:
            batch: of this rank. rows: number of clips of each rank.
            sample_rate: of the batch, in Hz.
            size: clips that a teacher embeds at once; None: all.
        """
        found = []
        for teacher in self.teachers:
            audio, text = embed_batch(teacher, batch, sample_rate=sample_rate, size=size)
            if is_distributed():
                audio, text = GatherRows.apply(torch.cat([audio, text], dim=1), rows).chunk(2, dim=1)
            with torch.autocast(audio.device.type, enabled=False):
                logits_per_audio = teacher.compute_similarity(audio, text)  # (all rows, all rows)
            found.append((logits_per_audio.softmax(dim=1), logits_per_audio.T.softmax(dim=1)))
        per_audio, per_text = zip(*found, strict=True)
        self.targets = torch.stack(per_audio).mean(dim=0), torch.stack(per_text).mean(dim=0)

    def forward(self, audio_embedding: Tensor, text_embedding: Tensor, logit_scale: Tensor, clip_ids: Tensor) -> Tensor:
        loss = super().forward(audio_embedding, text_embedding, logit_scale, clip_ids)
        if self.targets is None:
            raise RuntimeError("DistillationLoss.estimate must be called with the batch before its loss")
        per_audio, per_text = self.targets
        logits_per_audio = logit_scale * audio_embedding @ text_embedding.T
        distilled = F.cross_entropy(logits_per_audio, per_audio) + F.cross_entropy(logits_per_audio.T, per_text)
        return loss + self.weight * distilled / 2


def embed_batch(teacher: Clap, batch: Batch, *, sample_rate: int, size: int | None) -> tuple[Tensor, Tensor]:
    """A teacher's embeddings (rows, embed_dim) of the waveforms and captions of a batch, in float32."""
    waveform, rate = batch.waveform, teacher.sample_rate
    if teacher.device != waveform.device:
        teacher.to(waveform.device)
    audio, text = (torch.zeros(len(batch), teacher.embed_dim, device=waveform.device) for _ in range(2))
    size = size or max(len(batch), 1)
    for rows in (slice(start, start + size) for start in range(0, len(batch), size)):
        lengths = batch.lengths[rows]
        samples = waveform[rows, : int(lengths.max())]
        if rate != sample_rate:
            samples, lengths = resample(samples, sample_rate, rate), -(-lengths * rate // sample_rate)
        tokens = [part.to(waveform.device) for part in teacher.tokenizer(batch.captions[rows])]
        audio[rows], text[rows] = teacher.embed_audio(samples, lengths), teacher.embed_text(*tokens)
    return audio, text

"""Contrastive losses between a batch's audio and text embeddings.

Two rows with the same clip id are captions (or windows) of one clip, and positives of each other. The model keeps
`logit_scale` as a logarithm and exponentiates it in its forward, so a loss receives the scale itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOGIT_SCALE = 100.0  # Radford et al. 2021, section 2.5; training clips exp(logit_scale) to it


class SymmetricCrossEntropyLoss(nn.Module):
    """Cross entropy over the batch, audio to text and text to audio, averaged.

    audio_embedding, text_embedding (batch, embed_dim) unit norm, logit_scale () = exp of the model's parameter,
    clip_ids (batch,) -> loss (). The target of a row is uniform over its positives. If all ids differ, the loss is
    InfoNCE (Radford et al. 2021, figure 3). Custom-CLAP uses one row of a clip as the label of all its rows; this
    loss equals the mean over all choices.

    Args:
        init_logit_scale: initial value of the model's exp(logit_scale); 1 / 0.07 in the paper.
        learn_logit_scale: whether training changes it.
    """

    def __init__(self, *, init_logit_scale: float = 14.2857, learn_logit_scale: bool = True) -> None:
        super().__init__()
        self.init_logit_scale = check_logit_scale(init_logit_scale)
        self.learn_logit_scale = learn_logit_scale

    def forward(self, audio_embedding: Tensor, text_embedding: Tensor, logit_scale: Tensor, clip_ids: Tensor) -> Tensor:
        positives = _find_positives(audio_embedding, text_embedding, clip_ids)
        targets = positives / positives.sum(dim=1, keepdim=True)
        logits_per_audio = logit_scale * audio_embedding @ text_embedding.T  # (batch, batch)
        loss_audio = F.cross_entropy(logits_per_audio, targets)
        loss_text = F.cross_entropy(logits_per_audio.T, targets)
        return (loss_audio + loss_text) / 2


class SigmoidLoss(nn.Module):
    """One binary decision for every pair of the batch (SigLIP, Zhai et al. 2023, algorithm 1).

    audio_embedding, text_embedding (batch, embed_dim) unit norm, logit_scale () = exp of the model's parameter,
    clip_ids (batch,) -> loss (), summed over pairs and divided by the batch size. All pairs of one clip are positives.
    The bias is a parameter of the loss, which the optimizer must train as well.

    Args:
        init_logit_scale: initial value of the model's exp(logit_scale); 10 in the paper.
        learn_logit_scale: whether training changes it.
        init_logit_bias: initial bias; negative, since most pairs are negatives.
    """

    def __init__(
        self, *, init_logit_scale: float = 10.0, init_logit_bias: float = -10.0, learn_logit_scale: bool = True
    ) -> None:
        super().__init__()
        self.init_logit_scale = check_logit_scale(init_logit_scale)
        self.learn_logit_scale = learn_logit_scale
        self.logit_bias = nn.Parameter(torch.tensor(init_logit_bias))

    def forward(self, audio_embedding: Tensor, text_embedding: Tensor, logit_scale: Tensor, clip_ids: Tensor) -> Tensor:
        positives = _find_positives(audio_embedding, text_embedding, clip_ids)
        logits = logit_scale * audio_embedding @ text_embedding.T + self.logit_bias  # (batch, batch)
        return -F.logsigmoid((2 * positives - 1) * logits).sum() / len(logits)


def check_logit_scale(value: float) -> float:
    """Return an initial exp(logit_scale); ValueError unless it is above 0 and at most MAX_LOGIT_SCALE."""
    if not 0 < value <= MAX_LOGIT_SCALE:
        raise ValueError(
            f"init_logit_scale={value} must be above 0 and at most {MAX_LOGIT_SCALE:g}; set loss.init_logit_scale"
        )
    return value


def _find_positives(audio_embedding: Tensor, text_embedding: Tensor, clip_ids: Tensor) -> Tensor:
    """Mask (batch, batch) in the embeddings' dtype, 1 where two rows have the same clip id.

    Raises:
        ValueError: the shapes do not match.
    """
    audio_shape, text_shape, ids_shape = (tuple(x.shape) for x in (audio_embedding, text_embedding, clip_ids))
    if len(audio_shape) != 2 or audio_shape != text_shape or ids_shape != audio_shape[:1]:
        raise ValueError(
            f"audio_embedding {audio_shape}, text_embedding {text_shape} and clip_ids {ids_shape} do not match; "
            "they must be (batch, embed_dim), (batch, embed_dim) and (batch,)"
        )
    return (clip_ids[:, None] == clip_ids[None, :]).to(audio_embedding.dtype)

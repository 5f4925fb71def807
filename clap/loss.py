"""Contrastive losses between a batch's audio and text embeddings, and losses of the logits of a classifier.

Two rows with the same clip id are captions (or windows) of one clip, and positives of each other. The model keeps
`logit_scale` as a logarithm and exponentiates it in its forward, so a loss receives the scale itself.

With several processes, a loss with `gather: full` receives the rows of the whole batch on each of them. With `local` it
receives the rows of its process and, as keywords, those of all: all_audio and all_text (all rows, embed_dim),
all_clip_ids (all rows,). Its logits are (rows, all rows). The mean over processes, weighted by their rows, is the loss
of the whole batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clap.config.values import GATHERS

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
        gather: what a process compares its rows with, see above.
    """

    def __init__(
        self, *, init_logit_scale: float = 14.2857, learn_logit_scale: bool = True, gather: str = "full"
    ) -> None:
        super().__init__()
        self.init_logit_scale, self.learn_logit_scale = check_logit_scale(init_logit_scale), learn_logit_scale
        self.gather = check_gather(gather)

    def forward(
        self,
        audio_embedding: Tensor,
        text_embedding: Tensor,
        logit_scale: Tensor,
        clip_ids: Tensor,
        *,
        all_audio: Tensor | None = None,
        all_text: Tensor | None = None,
        all_clip_ids: Tensor | None = None,
    ) -> Tensor:
        positives = _find_positives(audio_embedding, text_embedding, clip_ids, all_clip_ids)
        targets = positives / positives.sum(dim=1, keepdim=True)
        if all_audio is None or all_text is None:
            logits_per_audio = logit_scale * audio_embedding @ text_embedding.T  # (batch, batch)
            logits_per_text = logits_per_audio.T
        else:
            logits_per_audio = logit_scale * audio_embedding @ all_text.T  # (rows, all rows)
            logits_per_text = logit_scale * text_embedding @ all_audio.T
        loss_audio = F.cross_entropy(logits_per_audio, targets)
        loss_text = F.cross_entropy(logits_per_text, targets)
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
        gather: what a process compares its rows with, see above; a pair is counted once, by the process of its audio.
    """

    def __init__(
        self,
        *,
        init_logit_scale: float = 10.0,
        init_logit_bias: float = -10.0,
        learn_logit_scale: bool = True,
        gather: str = "full",
    ) -> None:
        super().__init__()
        self.init_logit_scale, self.learn_logit_scale = check_logit_scale(init_logit_scale), learn_logit_scale
        self.gather = check_gather(gather)
        self.logit_bias = nn.Parameter(torch.tensor(init_logit_bias))

    def forward(
        self,
        audio_embedding: Tensor,
        text_embedding: Tensor,
        logit_scale: Tensor,
        clip_ids: Tensor,
        *,
        all_audio: Tensor | None = None,
        all_text: Tensor | None = None,
        all_clip_ids: Tensor | None = None,
    ) -> Tensor:
        positives = _find_positives(audio_embedding, text_embedding, clip_ids, all_clip_ids)
        texts = text_embedding if all_text is None else all_text
        logits = logit_scale * audio_embedding @ texts.T + self.logit_bias  # (rows, all rows)
        return -F.logsigmoid((2 * positives - 1) * logits).sum() / len(logits)


class ClassificationLoss(nn.Module):
    """Base of the losses of a `ClapAudioClassifier`.

    logits, targets (batch, classes) -> loss (), the mean over rows. A target is 1 for a class of the clip and 0 for
    another one, or of a mixture of two clips what `mix_targets` returns.

    Attributes:
        multi_label: whether a clip may have several classes, or none.
    """

    multi_label: bool

    def mix_targets(self, own: Tensor, partner: Tensor) -> Tensor:
        """Targets of mixtures (batch, classes) from those of their two clips, which may be the same clip."""
        raise NotImplementedError


class CrossEntropyLoss(ClassificationLoss):
    """Cross entropy of one class for each clip.

    logits, targets (batch, classes) -> loss (). A mixture of two clips has both classes, with a target of 0.5 each
    (Zhang et al. 2018, mixup).

    Args:
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016, section 7).

    Raises:
        ValueError: label_smoothing is out of range.
    """

    multi_label = False

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def mix_targets(self, own: Tensor, partner: Tensor) -> Tensor:
        return (own + partner) / 2


class BinaryCrossEntropyLoss(ClassificationLoss):
    """One binary decision for each clip and class, averaged over both (Kong et al. 2020, section III).

    logits, targets (batch, classes) -> loss (). A mixture of two clips has the classes of both.
    """

    multi_label = True

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets)

    def mix_targets(self, own: Tensor, partner: Tensor) -> Tensor:
        return torch.maximum(own, partner)


def check_logit_scale(value: float) -> float:
    """Return an initial exp(logit_scale); ValueError unless it is above 0 and at most MAX_LOGIT_SCALE."""
    if not 0 < value <= MAX_LOGIT_SCALE:
        raise ValueError(
            f"init_logit_scale={value} must be above 0 and at most {MAX_LOGIT_SCALE:g}; set loss.init_logit_scale"
        )
    return value


def check_gather(value: str) -> str:
    """Return a valid `gather`; ValueError otherwise."""
    if value not in GATHERS:
        raise ValueError(f"gather={value!r} is not one of {', '.join(GATHERS)}; set loss.gather")
    return value


def _find_positives(
    audio_embedding: Tensor, text_embedding: Tensor, clip_ids: Tensor, all_clip_ids: Tensor | None = None
) -> Tensor:
    """Mask (rows, all rows) in the embeddings' dtype, 1 where two rows have the same clip id.

    Raises:
        ValueError: the shapes do not match.
    """
    audio_shape, text_shape, ids_shape = (tuple(x.shape) for x in (audio_embedding, text_embedding, clip_ids))
    if len(audio_shape) != 2 or audio_shape != text_shape or ids_shape != audio_shape[:1]:
        raise ValueError(
            f"audio_embedding {audio_shape}, text_embedding {text_shape} and clip_ids {ids_shape} do not match; "
            "they must be (batch, embed_dim), (batch, embed_dim) and (batch,)"
        )
    others = clip_ids if all_clip_ids is None else all_clip_ids
    return (clip_ids[:, None] == others[None, :]).to(audio_embedding.dtype)

"""Average precision over all clips and accuracy of classes: functions from tensors to per-query values and metrics."""

import torch
from torch import Tensor

from clap.evaluation.ranks import BLOCK_SIZE, NOT_FINITE, count_blocks, load_block


def ranked_precisions(audio_embedding: Tensor, class_embedding: Tensor, is_positive: Tensor) -> Tensor:
    """Average precision of every class over all clips, ranked by their cosine with it.

    With m positive clips at the ranks r_1 < ... < r_m it is 1 / m * sum_i i / r_i. Of clips with equal cosines the
    negative ones come first.

    Args:
        audio_embedding: (clips, embed_dim), unit norm.
        class_embedding: (classes, embed_dim), unit norm.
        is_positive: (clips, classes) bool, with one or more clips of each class.

    Returns:
        (classes,) float64 in (0, 1].

    Raises:
        ValueError: the shapes do not match, a class has no clip, or an embedding is not finite.
    """
    if is_positive.shape != (len(audio_embedding), len(class_embedding)) or not is_positive.any(dim=0).all():
        raise ValueError(
            f"is_positive is {tuple(is_positive.shape)} for {len(audio_embedding)} clips and {len(class_embedding)} "
            "classes; give (clips, classes) with one or more clips of each class"
        )
    blocks, device, precisions = range(count_blocks(audio_embedding)), audio_embedding.device, []
    for j, positive in enumerate(is_positive.T.split(BLOCK_SIZE)):  # (block, clips)
        classes = load_block(class_embedding, j, device)
        scores = torch.cat([(load_block(audio_embedding, i, device) @ classes.T).T for i in blocks], dim=1)
        scores = scores[: len(positive), : len(audio_embedding)]
        _check_finite(scores.T)
        order = positive.byte().argsort(stable=True)
        order = order.gather(1, scores.gather(1, order).argsort(descending=True, stable=True))
        found = positive.gather(1, order).double()
        ranks = torch.arange(1, len(audio_embedding) + 1, device=found.device)
        precisions.append((found * found.cumsum(dim=1) / ranks).sum(dim=1) / found.sum(dim=1))
    return torch.cat(precisions)


def zero_shot_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the right class scores above every other: (clips, classes), (clips,) int64 -> (clips,) bool."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not belong together; give "
            "(clips, classes) and (clips,)"
        )
    _check_finite(logits)
    own = logits.gather(1, targets[:, None])  # (clips, 1)
    return (logits >= own).sum(dim=1) == 1


def predict_classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Class that scores highest, another one in a tie with the right one: (clips, classes), (clips,) -> (clips,)."""
    hits = zero_shot_hits(logits, targets)
    others = logits.scatter(1, targets[:, None], -torch.inf).argmax(dim=1)
    return torch.where(hits, targets, others)


def accuracy(hits: Tensor) -> float:
    """Fraction of clips (clips,) that are hits."""
    return hits.double().mean().item()


def _check_finite(logits: Tensor) -> None:
    bad = (~logits.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"logits[{row}, {column}] is {logits[row, column].item()} ({len(bad)} entries are not finite); {NOT_FINITE}"
        )

"""Small galleries with ties, several captions a clip and several clips a caption."""

import torch
from torch import Tensor

from clap.evaluation.ranks import RetrievalRanks, retrieval_ranks


def rank_matrix(similarity: Tensor, pair_clips: Tensor, pair_texts: Tensor | None = None) -> RetrievalRanks:
    """Ranks of a similarity matrix (clips, texts): its rows are the cosines with unit vectors, exactly."""
    return retrieval_ranks(similarity, torch.eye(similarity.shape[1]), pair_clips, pair_texts)


def make_ties(num_clips: int, num_texts: int, *, several: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of small integers, whose products are exact and often equal, and pairs in any order."""
    generator = torch.Generator().manual_seed(seed)
    audio, text = (torch.randint(-1, 2, (n, 4), generator=generator).float() for n in (num_clips, num_texts))
    pairs = torch.cat(
        [torch.arange(num_clips), torch.randint(num_clips, (num_texts - num_clips,), generator=generator)]
    )
    pairs = torch.stack([pairs, torch.arange(num_texts)])
    if several:
        pairs = torch.cat([pairs, torch.stack([torch.arange(num_clips), torch.arange(num_clips).flip(0)])], dim=1)
        pairs = pairs.unique(dim=1)
    return audio, text, *pairs[:, torch.randperm(pairs.shape[1], generator=generator)]


def golden_ranks(tensors: dict[str, Tensor]) -> RetrievalRanks:
    return rank_matrix(tensors["in/similarity_audio_by_text"], torch.arange(185) // 5)

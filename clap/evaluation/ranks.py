"""Ranks of the relevant pairs of a gallery in both directions, by counting in blocks.

A rank starts at 1. A tie with a wrong answer counts against the model, so that equal embeddings earn nothing.
A clip may have any number of texts (Clotho and the AudioCaps test set have five), a text any number of clips.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_SIZE = 512  # clips and texts whose cosines are held at a time: 1 MB
READ_BLOCKS = 8  # blocks of clips for which each block of texts is read once
MAX_PAIRS = 4096  # that are compared with a block at a time: 8 MB
NOT_FINITE = "look for clips or weights that are not finite, and whether optimizer.lr is too high"


@dataclass
class RetrievalRanks:
    """Rank of every relevant pair of a clip and a text, in both directions.

    Attributes:
        pair_clips: (pairs,) row of the clip.
        pair_texts: (pairs,) row of the text; a text without a second clip occurs once.
        text_to_audio: (pairs,) rank of the clip among all clips, for the text as query.
        audio_to_text: (pairs,) rank of the text among all texts, for the clip as query.
        grades: (pairs,) graded relevance, above 0; None: all are 1.
        text_clips: (texts,) row of the clip that each text describes, where every text is one query; None: the text of
            every pair is a query.
    """

    pair_clips: Tensor
    pair_texts: Tensor
    text_to_audio: Tensor
    audio_to_text: Tensor
    grades: Tensor | None = None
    text_clips: Tensor | None = None

    @property
    def best_text(self) -> Tensor:
        """(clips,) rank of the best text of a clip, for the clip as query; of the clips that have a text."""
        return best_of_each(self.audio_to_text, self.pair_clips.unique(return_inverse=True)[1])


def retrieval_ranks(
    audio_embedding: Tensor | np.ndarray,
    text_embedding: Tensor | np.ndarray,
    pair_clips: Tensor,
    pair_texts: Tensor | None = None,
    *,
    grades: Tensor | None = None,
    text_clips: Tensor | None = None,
    device: torch.device | str | None = None,
) -> RetrievalRanks:
    """Ranks by counting the items that are at least as similar, without sorting and without the similarity matrix.

    The cosines are computed in blocks of one shape, of which a few MB are held at a time. Embeddings that exceed the
    memory are given as memory-mapped files (`np.load(path, mmap_mode="r")`, `torch.from_file`): a block is read when it
    is compared. The result does not depend on where the embeddings are stored.

    Args:
        audio_embedding: (clips, embed_dim), unit norm.
        text_embedding: (texts, embed_dim), unit norm.
        pair_clips: (pairs,) int64, row of the clip of each relevant pair.
        pair_texts: (pairs,) int64, row of its text; None: every text describes one clip, and pair i is of text i.
        grades: (pairs,) graded relevance, above 0; None: all are 1.
        text_clips: (texts,) see `RetrievalRanks`; with it, a clip in no pair is a candidate and not a query.
        device: that compares; None: that of the embeddings, the CPU for arrays.

    Raises:
        ValueError: an embedding is not finite, the shapes do not match, a clip or text is in no pair, or a pair is
            given twice.
    """
    device = torch.device(device or (audio_embedding.device if isinstance(audio_embedding, Tensor) else "cpu"))
    if pair_texts is None:
        pair_texts = torch.arange(len(text_embedding))
    pair_clips, pair_texts = pair_clips.to(device), pair_texts.to(device)
    _check_retrieval(audio_embedding, text_embedding, pair_clips, pair_texts, may_lack_texts=text_clips is not None)
    own = _score_pairs(audio_embedding, text_embedding, pair_clips, pair_texts)  # (pairs,)
    by_clip = [_BlockPairs(pair_clips, own, chosen) for chosen in _group_by_block(pair_clips, len(audio_embedding))]
    by_text = [_BlockPairs(pair_texts, own, chosen) for chosen in _group_by_block(pair_texts, len(text_embedding))]
    text_to_audio, audio_to_text = torch.zeros_like(pair_clips), torch.zeros_like(pair_clips)
    for i, j, scores in score_blocks(audio_embedding, text_embedding, device):
        by_text[j].count(scores.T, text_to_audio)
        by_clip[i].count(scores, audio_to_text)
    # A pair counts itself, so that 1 is the best rank. Relevant items with equal scores do not hurt one another.
    text_to_audio -= _count_later_ties(own, pair_texts)
    audio_to_text -= _count_later_ties(own, pair_clips)
    return RetrievalRanks(pair_clips, pair_texts, text_to_audio, audio_to_text, grades, text_clips)


def best_of_each(ranks: Tensor, queries: Tensor) -> Tensor:
    """Lowest value of each query, (items,) -> (queries,); every number from 0 on occurs in queries (items,) int64."""
    best = torch.full((int(queries.max()) + 1,), torch.iinfo(ranks.dtype).max, dtype=ranks.dtype, device=ranks.device)
    return best.scatter_reduce(0, queries, ranks, "amin")


def load_block(embedding: Tensor | np.ndarray, block: int, device: torch.device) -> Tensor:
    """Rows of a block on a device, (BLOCK_SIZE, embed_dim) in float32 or float64, zeros below the last row.

    Every product has the full size of a block: libraries choose another order of summation for another shape, and equal
    embeddings would differ in the last bit.
    """
    rows = embedding[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
    rows = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))  # a copy: a mapped file is read-only
    rows = rows.to(device, torch.promote_types(rows.dtype, torch.float32))
    return F.pad(rows, (0, 0, 0, BLOCK_SIZE - len(rows))) if len(rows) < BLOCK_SIZE else rows


def count_blocks(embedding: Tensor | np.ndarray) -> int:
    return -(-len(embedding) // BLOCK_SIZE)


class _BlockPairs:
    """The pairs of a block of queries, to be compared with the scores of a block of candidates.

    Where every query of the block has a relevant item, the first items of all of them are compared without a copy of
    the scores, then the second ones, and so on.

    Args:
        rows: (pairs,) row of each pair's query in the gallery.
        own: (pairs,) score of each pair.
        chosen: (pairs of the block,) the pairs in it.
    """

    def __init__(self, rows: Tensor, own: Tensor, chosen: Tensor) -> None:
        local = rows[chosen] % BLOCK_SIZE
        order = local.argsort(stable=True)
        chosen, local = chosen[order], local[order]
        counts = local.bincount()  # (queries of the block,)
        place = torch.arange(len(chosen), device=chosen.device) - (counts.cumsum(0) - counts)[local]
        shared = int(counts.min()) if len(counts) else 0  # relevant items that every query has
        self.size = len(counts)
        self.layers = [(chosen[place == i], own[chosen[place == i], None]) for i in range(shared)]
        rest = place >= shared
        parts = zip(chosen[rest].split(MAX_PAIRS), local[rest].split(MAX_PAIRS), strict=True)
        self.others = [(part, rows, own[part, None]) for part, rows in parts if len(part)]

    def count(self, scores: Tensor, total: Tensor) -> None:
        """Add to the total (pairs,) the number of candidates that score at least as high as each pair.

        Args:
            scores: (queries, candidates) of the two blocks.
        """
        for pairs, own in self.layers:
            total[pairs] += _count_at_least(scores[: self.size], own)
        for pairs, rows, own in self.others:
            total[pairs] += _count_at_least(scores[rows], own)


def _count_at_least(scores: Tensor, own: Tensor) -> Tensor:
    """Number of scores in each row that reach its own: (rows, columns), (rows, 1) -> (rows,) int64.

    Sums of float32 are faster than those of booleans, and exact for a block.
    """
    return torch.ge(scores, own, out=torch.empty_like(scores, dtype=torch.float32)).sum(dim=1).long()


def score_blocks(
    audio_embedding: Tensor | np.ndarray, text_embedding: Tensor | np.ndarray, device: torch.device
) -> Iterator[tuple[int, int, Tensor]]:
    """The cosines (clips, texts) of every block of clips and block of texts, with the numbers of both."""
    clip_blocks = range(count_blocks(audio_embedding))
    for first in clip_blocks[::READ_BLOCKS]:
        group = {i: load_block(audio_embedding, i, device) for i in clip_blocks[first : first + READ_BLOCKS]}
        for j in range(count_blocks(text_embedding)):
            text = load_block(text_embedding, j, device)
            for i, audio in group.items():
                num_clips, num_texts = (
                    min(BLOCK_SIZE, len(embedding) - block * BLOCK_SIZE)
                    for embedding, block in ((audio_embedding, i), (text_embedding, j))
                )
                yield i, j, (audio @ text.T)[:num_clips, :num_texts]


def _score_pairs(
    audio_embedding: Tensor | np.ndarray, text_embedding: Tensor | np.ndarray, pair_clips: Tensor, pair_texts: Tensor
) -> Tensor:
    """(pairs,) cosines of relevant pairs, from the same products as those of all other pairs."""
    own = None
    for i, of_clips in enumerate(_group_by_block(pair_clips, len(audio_embedding))):
        audio = load_block(audio_embedding, i, pair_clips.device)
        found = pair_texts[of_clips] // BLOCK_SIZE
        for j in found.unique().tolist():
            chosen = of_clips[found == j]
            scores = audio @ load_block(text_embedding, j, pair_clips.device).T
            own = scores.new_empty(len(pair_clips)) if own is None else own
            own[chosen] = scores[pair_clips[chosen] % BLOCK_SIZE, pair_texts[chosen] % BLOCK_SIZE]
    return own


def _group_by_block(rows: Tensor, count: int) -> list[Tensor]:
    """For each block of `count` rows, the indices of the pairs in it: (pairs,) -> (pairs of the block,) each."""
    blocks = rows // BLOCK_SIZE
    sizes = blocks.bincount(minlength=-(-count // BLOCK_SIZE))
    return list(blocks.argsort(stable=True).split(sizes.tolist()))


def _count_later_ties(scores: Tensor, queries: Tensor) -> Tensor:
    """For each item, the number of later items of the same query with an equal score; all (items,)."""
    order = scores.argsort(stable=True)
    order = order[queries[order].argsort(stable=True)]  # by query, then by score, then by place
    queries, scores = queries[order], scores[order]
    is_new = (queries[1:] != queries[:-1]) | (scores[1:] != scores[:-1])
    run = F.pad(is_new.cumsum(0), (1, 0))  # (items,) number of the run of equal scores
    last = run.bincount().cumsum(0) - 1  # (runs,) place of its last item
    return torch.empty_like(order).index_copy(0, order, last[run] - torch.arange(len(order), device=order.device))


def _check_retrieval(
    audio_embedding: Tensor | np.ndarray,
    text_embedding: Tensor | np.ndarray,
    pair_clips: Tensor,
    pair_texts: Tensor,
    *,
    may_lack_texts: bool,
) -> None:
    shapes = [tuple(x.shape) for x in (audio_embedding, text_embedding, pair_clips, pair_texts)]
    if [len(shape) for shape in shapes] != [2, 2, 1, 1] or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[3]:
        raise ValueError(
            "audio_embedding {}, text_embedding {}, pair_clips {} and pair_texts {} do not belong together; give "
            "(clips, embed_dim), (texts, embed_dim), (pairs,) and (pairs,)".format(*shapes)
        )
    for name, rows, item, embedding in (
        ("pair_clips", pair_clips, "clip", audio_embedding),
        ("pair_texts", pair_texts, "text", text_embedding),
    ):
        count = len(embedding)
        bad = _find_not_finite(embedding)
        if bad:
            raise ValueError(
                f"the embedding of {item} {bad[0]} is not finite ({len(bad)} of {count} are not); {NOT_FINITE}"
            )
        if rows.min() < 0 or rows.max() >= count:
            raise ValueError(f"{name} runs from {rows.min()} to {rows.max()}; there are the {item}s 0 to {count - 1}")
        unused = (rows.bincount(minlength=count) == 0).nonzero()
        if len(unused) and not (item == "clip" and may_lack_texts):
            raise ValueError(f"{item} {unused[0].item()} (of {len(unused)} such) is not in {name}; drop its embedding")
    if len((pair_clips * len(text_embedding) + pair_texts).unique()) < len(pair_clips):
        raise ValueError("pair_clips and pair_texts have a pair twice; give each pair of a clip and a text once")


def _find_not_finite(embedding: Tensor | np.ndarray) -> list[int]:
    """The rows of an embedding that are not finite, read block by block."""
    device = embedding.device if isinstance(embedding, Tensor) else torch.device("cpu")
    sums = [load_block(embedding, block, device).sum(dim=1) for block in range(count_blocks(embedding))]
    return (~torch.cat(sums).isfinite()).nonzero()[:, 0].tolist() if sums else []

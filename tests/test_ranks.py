"""Ranks in blocks against single comparisons, in memory and from mapped files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_cases import golden_ranks, make_ties, rank_matrix
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clap.evaluation.ranks
from clap.evaluation.ranks import retrieval_ranks


def count_ranks(scores: Tensor, pair_clips: Tensor, pair_texts: Tensor) -> tuple[list[int], list[int]]:
    """Both ranks of every pair, one comparison at a time; of relevant items with equal scores the first is ahead."""
    pairs = list(zip(pair_clips.tolist(), pair_texts.tolist(), strict=True))
    relevant, ranks = {pair: place for place, pair in enumerate(pairs)}, ([], [])
    for place, (clip, text) in enumerate(pairs):
        queries = [[(c, text) for c in range(len(scores))], [(clip, t) for t in range(scores.shape[1])]]
        for direction, items in enumerate(queries):
            own, ahead = scores[clip, text], [(scores[item], relevant.get(item, -1)) for item in items]
            ranks[direction].append(sum(score > own or (score == own and tie <= place) for score, tie in ahead))
    return ranks


@pytest.mark.parametrize("several", [False, True], ids=["one clip a text", "several clips a text"])
@pytest.mark.parametrize("block", [1, 4, 7, 512])
def test_ranks_in_blocks_are_those_of_single_comparisons(
    monkeypatch: pytest.MonkeyPatch, block: int, several: bool
) -> None:
    monkeypatch.setattr(clap.evaluation.ranks, "BLOCK_SIZE", block)
    monkeypatch.setattr(clap.evaluation.ranks, "MAX_PAIRS", 5)
    audio, text, pair_clips, pair_texts = make_ties(13, 30, several=several)
    ranks = retrieval_ranks(audio, text, pair_clips, pair_texts)
    expected = count_ranks((audio.double() @ text.double().T).long(), pair_clips, pair_texts)
    assert (ranks.text_to_audio.tolist(), ranks.audio_to_text.tolist()) == expected


def test_equal_embeddings_tie_in_any_place_of_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of another shape may round differently; those of all blocks have one shape."""
    monkeypatch.setattr(clap.evaluation.ranks, "BLOCK_SIZE", 64)
    torch.manual_seed(0)
    audio, text = torch.randn(10, 300).repeat(15, 1), torch.randn(10, 300).repeat(15, 1)
    ranks = retrieval_ranks(audio, text, torch.arange(150))
    scores = (audio[:10].double() @ text[:10].double().T).repeat(15, 15)
    own = scores.diagonal()
    assert ranks.text_to_audio.tolist() == (scores >= own).sum(dim=0).tolist()
    assert ranks.audio_to_text.tolist() == (scores >= own[:, None]).sum(dim=1).tolist()


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of a result."""

    size = 0

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(item.numel() for item in tree_leaves(result) if isinstance(item, Tensor))])
        return result


def test_similarity_matrix_is_never_whole() -> None:
    """Of 16 million cosines, at most a block or the pairs that are compared with it are held."""
    embedding = torch.randn(4000, 8)
    with LargestTensor() as largest:
        retrieval_ranks(embedding, embedding, torch.arange(4000))
    assert largest.size <= clap.evaluation.ranks.BLOCK_SIZE * clap.evaluation.ranks.MAX_PAIRS


def test_equal_embeddings_rank_last() -> None:
    ranks = rank_matrix(torch.zeros(4, 4), torch.arange(4))
    assert ranks.text_to_audio.tolist() == ranks.audio_to_text.tolist() == [4, 4, 4, 4]


def test_equal_captions_of_one_clip_do_not_hurt_one_another() -> None:
    similarity = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.2, 0.8]])
    assert rank_matrix(similarity, torch.tensor([0, 0, 1])).audio_to_text.tolist() == [1, 2, 1]


def test_clip_has_the_rank_of_its_best_caption() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.6, 0.7, 0.8]])
    assert rank_matrix(similarity, torch.tensor([0, 0, 1])).best_text.tolist() == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("item", ["clip", "text"])
def test_embedding_that_is_not_finite_is_refused(value: float, item: str) -> None:
    embeddings = {"clip": torch.ones(7, 4), "text": torch.ones(7, 4)}
    embeddings[item][3, 2] = value
    with pytest.raises(ValueError, match=rf"the embedding of {item} 3 is not finite \(1 of 7 are not\); look for"):
        retrieval_ranks(*embeddings.values(), torch.arange(7))


@pytest.mark.parametrize(
    ("pair_clips", "pair_texts", "message"),
    [
        ([0, 1], None, "do not belong together"),
        ([0, 1, 2], None, "pair_clips runs from 0 to 2; there are the clips 0 to 1"),
        ([0, 0, 0], None, r"clip 1 \(of 1 such\) is not in pair_clips"),
        ([0, 1, 1], [0, 2, 2], r"text 1 \(of 1 such\) is not in pair_texts"),
        ([0, 1, 1, 1], [0, 1, 2, 2], "a pair twice"),
    ],
)
def test_wrong_pairs_are_refused(pair_clips: list[int], pair_texts: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_matrix(torch.zeros(2, 3), torch.tensor(pair_clips), pair_texts and torch.tensor(pair_texts))


def test_golden_ranks_are_exact(golden) -> None:
    _, tensors = golden("retrieval")
    ranks = golden_ranks(tensors)
    assert ranks.text_to_audio.tolist() == tensors["out/t2a_rank"].tolist()
    assert ranks.best_text.tolist() == tensors["out/a2t_best_rank"].tolist()
    each_caption = tensors["out/a2t_rank_of_each_caption"].sort(dim=1).values
    assert ranks.audio_to_text.view(37, 5).sort(dim=1).values.tolist() == each_caption.tolist()


@pytest.mark.parametrize("block", [5, 512])
def test_mapped_files_give_the_ranks_of_the_matrix_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Read in blocks, from .npy files and from torch files, with ties; against comparisons of the whole matrix."""
    monkeypatch.setattr(clap.evaluation.ranks, "BLOCK_SIZE", block)
    monkeypatch.setattr(clap.evaluation.ranks, "READ_BLOCKS", 2)
    audio, text, pair_clips, pair_texts = make_ties(43, 97, several=True)
    scores = audio @ text.T  # exact: products of small integers
    own = scores[pair_clips, pair_texts]
    is_pair = torch.zeros_like(scores, dtype=torch.bool).index_put((pair_clips, pair_texts), torch.tensor(True))
    same = [(rows[:, None] == rows) & (own[:, None] == own) for rows in (pair_texts, pair_clips)]
    ahead = [torch.tril(tied).sum(dim=1) for tied in same]  # relevant items with the same score, itself among them
    expected = [[], []]
    for place, (clip, row) in enumerate(zip(pair_clips.tolist(), pair_texts.tolist(), strict=True)):
        for direction, (side, relevant) in enumerate(
            [(scores[:, row], is_pair[:, row]), (scores[clip], is_pair[clip])]
        ):
            better = (side > own[place]) | ((side == own[place]) & ~relevant)
            expected[direction].append(int(better.sum() + ahead[direction][place]))
    for name, embedding in (("audio", audio), ("text", text)):
        np.save(tmp_path / f"{name}.npy", embedding.numpy())
        embedding.numpy().tofile(tmp_path / f"{name}.bin")
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("audio", "text")]
    from_file = [
        torch.from_file(str(tmp_path / f"{name}.bin"), size=embedding.numel()).view_as(embedding)
        for name, embedding in (("audio", audio), ("text", text))
    ]
    for embeddings in (mapped, from_file, (audio, text)):
        ranks = retrieval_ranks(*embeddings, pair_clips, pair_texts)
        assert [ranks.text_to_audio.tolist(), ranks.audio_to_text.tolist()] == expected

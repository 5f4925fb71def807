"""The order of a training epoch: shards in turn, shuffled over several open ones. Imports no torch."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from clap.dataset.clip_table import JoinedClips
from clap.dataset.epoch_pairs import EpochPairs


def order_epoch(
    clips: JoinedClips, pairs: Sequence[EpochPairs], open_shards: Sequence[int | None], *, epoch: int, seed: int
) -> np.ndarray:
    """(positions,) a random order of the positions of an epoch, which depends only on seed and epoch.

    Args:
        pairs: of each corpus.
        open_shards: of each corpus, see `shuffle_shards`; None: all of its clips are shuffled.
    """
    rng = np.random.default_rng([seed, epoch])
    if not any(open_shards):
        return rng.permutation(sum(map(len, pairs)))
    shards, start, orders, others = number_shards(clips), 0, [], [np.zeros(0, np.int64)]
    for own, num_open in zip(pairs, open_shards, strict=True):
        positions = np.arange(start, start + len(own))
        start += len(own)
        if num_open is None:
            others.append(positions)
        else:
            orders.append(positions[shuffle_shards(shards[own.list_clips(epoch)], num_open, rng)])
    return merge_orders([rng.permutation(np.concatenate(others)), *orders], rng)


def number_shards(clips: JoinedClips) -> np.ndarray:
    """(clips,) number of the shard of each clip; -1 for a clip in a file of its own."""
    numbers: dict[bytes, int] = {}
    codes = [np.zeros(0, np.int32)]
    for batch in clips.batches("member"):
        shards = pc.struct_field(batch["member"], "shard").combine_chunks().dictionary_encode()
        own = [numbers.setdefault(name, len(numbers)) for name in shards.dictionary.to_pylist()]
        codes.append(np.array([*own, -1], np.int32)[shards.indices.fill_null(len(own)).to_numpy()])
    return np.concatenate(codes)


def shuffle_shards(shards: np.ndarray, num_open: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of positions in which each shard is read once: groups of shards in turn, each group shuffled.

    Args:
        shards: (positions,) number of the shard of each.
        num_open: shards in a group.
    """
    numbers, shard = np.unique(shards, return_inverse=True)
    group = rng.permutation(len(numbers)) // num_open
    order = rng.permutation(len(shards))
    return order[np.argsort(group[shard[order]], kind="stable")]


def merge_orders(orders: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Several orders in one, each kept and spread evenly."""
    places = np.concatenate([np.sort(rng.random(len(order))) for order in orders])
    return np.concatenate(orders)[np.argsort(places, kind="stable")]

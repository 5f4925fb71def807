"""Pairs of an epoch as arrays, against plain loops."""

import numpy as np

from clap.dataset.epoch_pairs import EpochPairs, number_groups, pair_captions


def test_groups_are_numbered_by_first_appearance():
    keys, known = np.random.default_rng(0).integers(-20, 20, 100), {}
    assert number_groups(keys).tolist() == [known.setdefault(key, len(known)) for key in keys.tolist()]


def test_every_caption_is_a_pair():
    clips, numbers = pair_captions(np.array([4, 7, 9]), np.array([2, 1, 3]))
    expected = [(4, 0), (4, 1), (7, 0), (9, 0), (9, 1), (9, 2)]
    assert list(zip(clips.tolist(), numbers.tolist(), strict=True)) == expected


def test_weight_permutes_the_pairs_as_a_list():
    clips, order = np.arange(10, 20), np.random.default_rng((0, 1)).permutation(10)
    first = np.random.default_rng([0, 1, 5]).integers(10)
    pairs = EpochPairs(clips, None, 0.5, seed=(0, 1))
    expected = [(int(clips[order[(first + i) % 10]]), None) for i in range(5)]
    assert [pairs.locate(i, 5) for i in range(len(pairs))] == expected

"""Normalized captions, and an index that finds exactly the near captions that a plain loop finds."""

import itertools
import random

import pytest

from clap.check.near_captions import CaptionIndex, find_words, normalize_caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog barks.", "a dog barks"),
        ("  A  DOG—barks!", "a dog barks"),
        ("it's a dog's bark", "it's a dog's bark"),
        ("Ein Gerät läutet", "ein gerät läutet"),
        ("ＡＭ radio_noise, 60 Hz", "am radio noise 60 hz"),
        ("...", ""),
    ],
)
def test_normalize_drops_case_and_punctuation(caption: str, expected: str):
    assert normalize_caption(caption) == expected


def test_words_are_in_order():
    assert find_words("Rain, then wind.") == ["rain", "then", "wind"]


def jaccard(one: str, other: str) -> float:
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.8, 1.0])
def test_index_finds_what_a_plain_loop_finds(threshold: float):
    draw = random.Random(0)
    words = [chr(ord("a") + i) for i in range(12)]
    captions = [" ".join(draw.choices(words, k=draw.randint(1, 8))) for _ in range(300)]
    index = CaptionIndex(captions[:200], threshold)
    found = {(query, other) for query in captions[200:] for other, _ in index.search(query)}
    pairs = itertools.product(captions[200:], captions[:200])
    assert found == {(one, other) for one, other in pairs if jaccard(one, other) >= threshold - 1e-9}


def test_nearest_comes_first_with_its_similarity():
    index = CaptionIndex(["a dog barks at night", "a dog barks"], 0.5)
    assert index.search("a dog barks loudly") == [("a dog barks", 0.75), ("a dog barks at night", 0.5)]


def test_unknown_words_find_nothing():
    assert CaptionIndex(["a dog"], 0.8).search("two cats") == [] and CaptionIndex([], 0.8).search("a") == []

"""Which clips of a split are shown, and what they retrieve."""

import torch

from clap.corpus import Clip
from clap.evaluation.retrieved_clips import has_classes, retrieve, take_turns


def test_class_of_a_clip_is_a_right_answer():
    found = retrieve(torch.tensor([0.1, 0.9, 0.5, 0.7]), ["dog", "rain", "cat", "wind"], ("wind", "dog"))
    assert [(item.text, item.is_own) for item in found] == [("rain", False), ("wind", True), ("cat", False)]


def test_clips_are_shown_by_class_only_where_captions_are_from_labels():
    from_labels, written = (
        [Clip(str(i), ("a dog",), label="dog", captions_from_labels=made) for i in range(3)] for made in (True, False)
    )
    assert has_classes(from_labels) and not has_classes(written) and not has_classes([*from_labels, *written])


def test_classes_take_turns():
    labels = ["dog", "dog", "rain", "cat", "dog", "rain"]
    clips = [Clip(str(i), ("x",), label=label) for i, label in enumerate(labels)]
    assert take_turns(clips) == [3, 0, 2, 1, 5, 4]

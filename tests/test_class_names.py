"""The classes of a labelled corpus."""

import pytest
from labelled_tones import LabelledTones, make_clip

from clap.dataset.class_names import list_classes


def test_classes_are_the_labels_of_the_training_clips():
    assert list_classes(LabelledTones()) == list_classes(LabelledTones(several=True)) == ["high", "low", "middle"]


def test_class_without_training_clips_is_named_with_its_clip():
    corpus = LabelledTones(test=[make_clip("new", "shrill")])
    with pytest.raises(ValueError, match="no training clip of tones has the class 'shrill' of its test clip new"):
        list_classes(corpus)


def test_corpus_without_labels_is_refused():
    with pytest.raises(ValueError, match="no training clip of tones has a label"):
        list_classes(LabelledTones(train=[make_clip("bare")]))

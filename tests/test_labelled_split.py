"""The labelled clips of a split, and the classes of its dataset."""

import pytest
import torch

from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.evaluation.embedded_split import EmbeddedSplit
from clap.evaluation.labelled_split import list_class_names, require_labels, select_labels


class Labelled(Corpus):
    name = "labelled"

    def clips(self, split: str) -> list[Clip]:
        labels = ["rain", None, "dog", "rain"] if split == "test" else [None]
        return [Clip(str(number), ("x",), label=label) for number, label in enumerate(labels)]


def make_dataset(kind: str = "test") -> ClapDataset:
    return ClapDataset(Labelled(), kind, sample_rate=16_000)


def test_labelled_clips_have_the_place_of_their_class():
    found = select_labels(EmbeddedSplit(make_dataset(), torch.eye(4), list(range(4)), {}))
    assert (found.clip_ids, found.class_names, found.targets.tolist()) == (["0", "2", "3"], ["dog", "rain"], [1, 0, 1])
    assert found.audio_embedding.tolist() == torch.eye(4)[[0, 2, 3]].tolist()


def test_class_of_a_clip_that_cannot_be_read_is_listed():
    dataset = make_dataset()
    dataset.missing = [Clip("gone", ("x",), label="wind")]
    assert list_class_names(dataset) == ["dog", "rain", "wind"]


def test_split_without_labels_is_refused():
    dataset = make_dataset("train")
    with pytest.raises(ValueError, match=r"no clip of labelled \(train\) has a label; choose evaluation="):
        require_labels(dataset, dataset.clips)

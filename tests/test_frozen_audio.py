"""Clips whose features are known are not decoded; a changed recording, or another part of it, is not known."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tars import write_shards
from torch import Tensor

from clap.corpus import Clip, Corpus
from clap.dataset.cache import WaveformCache
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.feature_store import FeatureStore, Use
from clap.dataset.frozen_audio import FrozenAudio, find_key, is_identified
from clap.dataset.loader import Batch, Collate, make_loader
from clap.dataset.shards import Shards

RATE = 16_000


class Tones(Corpus):
    """Three recordings of 0.5, 1.0 and 1.5 seconds."""

    name = "tones"

    def __init__(self, folder: Path) -> None:
        self.listed = [Clip(f"tone {n}", (f"tone {n}",), folder / f"{n}.wav") for n in range(3)]

    def clips(self, split: str) -> list[Clip]:
        return self.listed if split == "train" else []


def write_tone(path: Path, *, duration: float, frequency: float) -> None:
    time = np.arange(round(duration * RATE)) / RATE
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * frequency * time), RATE)
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tones:
    monkeypatch.setattr("clap.dataset.frozen_audio.MIN_AGE", 0.0)
    for number in range(3):
        write_tone(tmp_path / f"{number}.wav", duration=0.5 * (number + 1), frequency=200.0 * (number + 1))
    return Tones(tmp_path)


@pytest.fixture
def embed(corpus: Tones, tmp_path: Path) -> Callable[..., tuple[Batch, Use]]:
    """`embed(window=..., ...)` -> the batch of all clips in order with their features, and how they were found."""

    def run(window: float | None = 1.0, *, num_workers: int = 0, **settings) -> tuple[Batch, Use]:
        options = {"sample_rate": RATE, "window": window, "settings": DatasetSettings(**settings), "training": False}
        dataset, use = ClapDataset(corpus, "train", **options), Use()
        dataset.frozen_audio = FrozenAudio(FeatureStore(tmp_path / "features", 4), use)
        collate = Collate(lambda captions: (torch.zeros(len(captions), 1).long(), torch.ones(len(captions), 1).bool()))
        loader = make_loader(dataset, collate, batch_size=3, num_workers=num_workers, shuffle=False)
        batch = dataset.frozen_audio.complete(next(iter(loader)), encode)
        dataset.frozen_audio.store.flush()
        return batch, use

    return run


def encode(waveform: Tensor, lengths: Tensor) -> Tensor:
    """Four numbers of a waveform that its padding does not change."""
    return torch.stack([waveform[:, :100].mean(1), waveform.square().sum(1), lengths.float(), waveform.amax(1)], dim=1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_known_clips_have_features_and_lengths_without_samples(embed: Callable, num_workers: int):
    first, _ = embed()
    second, use = embed(num_workers=num_workers)
    assert (use.found, use.computed) == (3, 0) and second.samples.shape == (3, 0)
    torch.testing.assert_close(second.features, first.features, atol=0.0, rtol=0.0)
    assert second.lengths.tolist() == first.lengths.tolist() == [8000, 16000, 16000]
    assert second.is_cut.tolist() == first.is_cut.tolist() == [False, False, True]


def test_batch_with_some_known_clips_encodes_the_others(embed: Callable, corpus: Tones):
    whole, _ = embed()
    write_tone(corpus.listed[1].path, duration=1.0, frequency=500.0)
    batch, use = embed()
    assert (use.found, use.computed) == (2, 1)
    is_same = (batch.features == whole.features).all(dim=1)
    assert is_same.tolist() == [True, False, True]


def test_recording_that_is_replaced_by_an_equal_size_and_time_is_not_known(embed: Callable, corpus: Tones):
    embed()
    path, before = corpus.listed[0].path, corpus.listed[0].path.stat()
    write_tone(path, duration=0.5, frequency=333.0)
    assert (path.stat().st_size, path.stat().st_mtime) == (before.st_size, before.st_mtime)
    assert embed()[1].computed == 1


def test_another_part_of_a_recording_has_features_of_its_own(embed: Callable):
    embed()
    batch, use = embed(window=0.25)
    assert use.computed == 3 and batch.is_cut.all()
    assert not embed(window=None)[0].is_cut.any()


def test_samples_in_16_bits_have_features_of_their_own(embed: Callable, corpus: Tones, tmp_path: Path):
    embed()
    corpus.cache = WaveformCache(tmp_path / "waveforms")
    assert embed()[1].computed == 3
    batch, use = embed()
    assert use.found == 3 and batch.is_cached.all()


def test_lower_limit_of_duration_is_applied_to_known_clips(embed: Callable):
    embed(window=None)
    assert len(embed(window=None, longest_clip=1.2, max_bad_fraction=1.0)[0].problems) == 1


def test_recording_that_may_still_change_is_not_stored(embed: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.dataset.frozen_audio.MIN_AGE", 1e6)
    assert embed()[1].computed == embed()[1].computed == 3


def test_unreadable_recording_stays_a_problem(embed: Callable, corpus: Tones):
    corpus.listed[0].path.write_bytes(b"no audio" * 100)
    for found in (0, 2):
        batch, use = embed()
        assert list(batch.problems) == [0] and use.found == found


def test_corpus_with_a_load_of_its_own_must_identify_its_audio(corpus: Tones):
    class Loud(Tones):
        def load(self, clip: Clip, **options) -> np.ndarray:
            return 2 * super().load(clip, **options)

    clip = corpus.listed[0]
    loud = Loud(clip.path.parent)
    assert is_identified(corpus, clip) and not is_identified(loud, clip)
    loud.identify = lambda clip: f"loud {clip.id}"
    assert is_identified(loud, clip) and not is_identified(corpus, replace(clip, path=None))


def test_clip_of_a_shard_is_identified_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.dataset.frozen_audio.MIN_AGE", -1.0)
    (path,) = write_shards(tmp_path, [2])
    corpus = Shards(tmp_path, shard_cache=tmp_path / "cache")
    first, second = corpus.clips("train")
    keys = [find_key(corpus, clip, 1.0).tolist() for clip in (first, second)]
    assert is_identified(corpus, first) and keys[0] != keys[1]
    write_shards(tmp_path, [2])
    assert find_key(corpus, first, 1.0).tolist() != keys[0]
    remote = replace(first, member=replace(first.member, shard="http://localhost:9/000.tar"))
    assert find_key(corpus, remote, 1.0) is not None  # and nothing is fetched

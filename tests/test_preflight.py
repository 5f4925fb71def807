"""Recordings of the evaluated splits are checked before training; settings without effect are in test_trainer.py."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ramps import Ramps, make_dataset
from ranks import run_ranks
from torch.utils.data import DataLoader, DistributedSampler

from clap.audio import LogMelSpectrogram
from clap.audio_encoder.cnn14 import Cnn14
from clap.corpus import Clip
from clap.dataset.clips import ClapDataset
from clap.dataset.synthetic import Synthetic
from clap.fusion import AFF, GlobalAndLocal, MeanOfWindows, OneWindow
from clap.training import preflight
from clap.training.preflight import (
    check_recordings,
    check_same_clips,
    check_sharding,
    log_idle_fusion,
    log_untrained_norms,
)


@pytest.fixture
def clips(ramps: list[Clip], unreadable: Path) -> list[Clip]:
    """Ten recordings and one that does not decode, which is the second."""
    return [ramps[0], Clip("odd", ("a",), unreadable), *ramps[1:]]


def test_unreadable_recording_of_a_split_is_named(clips: list[Clip], caplog: pytest.LogCaptureFixture):
    check_recordings(make_dataset(clips, "test", max_bad_fraction=0.1))
    assert "test split: " in caplog.text and "unreadable.wav: cannot be decoded" in caplog.text


@pytest.mark.parametrize(("window", "is_refused"), [(None, True), (0.5, False)])
def test_clip_that_is_too_long_is_refused_where_all_of_it_is_read(
    ramps: list[Clip], window: float | None, is_refused: bool
):
    """The clips have 2 s."""
    dataset = make_dataset(ramps, "test", window=window, longest_clip=1.0)
    if not is_refused:
        check_recordings(dataset)
        return
    with pytest.raises(ValueError, match="10 of 10 clips of ramps .*2.0 s long, the longest clip is 1 s; cut it"):
        check_recordings(dataset)


def test_too_many_unreadable_recordings_are_refused_with_the_missing_ones(clips: list[Clip], tmp_path: Path):
    lost = Clip("lost", ("a",), tmp_path / "lost.wav")
    with pytest.raises(
        ValueError, match=r"2 of 12 clips of ramps \(test\) cannot be used, the first is odd \(.*: cannot be decoded"
    ):
        check_recordings(make_dataset([*clips, lost], "test", max_bad_fraction=0.1))


def test_missing_recordings_alone_are_allowed_as_the_dataset_allows_them(ramps: list[Clip], tmp_path: Path):
    lost = Clip("lost", ("a",), tmp_path / "lost.wav")
    check_recordings(make_dataset([*ramps, lost], "test", max_bad_fraction=0.1))


def test_number_of_checked_recordings_is_bounded(ramps: list[Clip], monkeypatch: pytest.MonkeyPatch):
    for most, count in ((10, 10), (9, 5), (3, 3)):
        dataset = make_dataset(ramps, "test")
        monkeypatch.setattr(preflight, "MOST_HEADERS", most)
        check_recordings(dataset)
        assert len(dataset.headers) == count


def test_rendered_scenes_have_nothing_to_check():
    dataset = ClapDataset(Synthetic(num_train=2, num_val=2, num_test=2), "val", sample_rate=8000)
    check_recordings(dataset)
    assert not dataset.headers


FUSIONS = {"none": OneWindow(), "mean": MeanOfWindows(), "aff": GlobalAndLocal(AFF), "channel_map": GlobalAndLocal()}


def warn_of_fusion(fusion: str, window: float, dataset: ClapDataset, caplog: pytest.LogCaptureFixture) -> str:
    """What is logged of a model at 1 kHz."""
    frontend = LogMelSpectrogram(1000, window=window, n_fft=64, hop_length=10, n_mels=32, f_max=500.0)
    encoder = Cnn14(width=2, frontend=frontend, fusion=FUSIONS[fusion])
    trainer = SimpleNamespace(
        clap=SimpleNamespace(audio_encoder=encoder), train_loader=SimpleNamespace(dataset=dataset)
    )
    log_idle_fusion(trainer)
    return caplog.text


@pytest.mark.filterwarnings("ignore:.*filters contain no bin")
@pytest.mark.parametrize("fusion", ["mean", "aff", "channel_map"])
@pytest.mark.parametrize(
    ("window", "max_duration", "is_idle"), [(1.0, 30.0, False), (1.0, 1.0, True), (2.0, 30.0, True)]
)
def test_fusion_that_no_training_clip_needs_is_reported(
    ramps: list[Clip], caplog: pytest.LogCaptureFixture, fusion: str, window: float, max_duration: float, is_idle: bool
):
    """The clips have 2 s."""
    dataset = ClapDataset(Ramps(ramps, max_duration=max_duration), sample_rate=1000)
    text = warn_of_fusion(fusion, window, dataset, caplog)
    assert is_idle == ("the fusion has no effect" in text)
    assert (is_idle and fusion != "mean") == ("untrained weights" in text)
    assert bool(dataset.headers) == (max_duration > window)  # not read if the corpus decides


@pytest.mark.filterwarnings("ignore:.*filters contain no bin")
def test_model_without_fusion_is_not_reported(ramps: list[Clip], caplog: pytest.LogCaptureFixture):
    assert not warn_of_fusion("none", 5.0, make_dataset(ramps), caplog)


@pytest.mark.filterwarnings("ignore:.*filters contain no bin")
@pytest.mark.parametrize(("window", "is_idle"), [(9.0, False), (10.0, True)])
def test_durations_of_rendered_scenes_count(caplog: pytest.LogCaptureFixture, window: float, is_idle: bool):
    scenes = Synthetic(num_train=20, num_val=2, num_test=2, min_duration=9.5, max_duration=10.0)
    dataset = ClapDataset(scenes, sample_rate=1000)
    assert is_idle == ("has no effect" in warn_of_fusion("aff", window, dataset, caplog))


def test_loader_that_gives_every_process_all_batches_is_refused(ramps: list[Clip], monkeypatch: pytest.MonkeyPatch):
    dataset = make_dataset(ramps)
    check_sharding(DataLoader(dataset, batch_size=4))
    monkeypatch.setattr(preflight, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="each of the 2 processes would train on all batches of this loader"):
        check_sharding(DataLoader(dataset, batch_size=4))
    check_sharding(DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset, num_replicas=2, rank=0)))


def test_processes_with_different_clips_are_refused():
    run_ranks(lambda rank: check_same_clips({"train": torch.arange(3)}))
    for error in run_ranks(lambda rank: check_same_clips({"train": torch.arange(3 - rank)})):
        assert "rank 0 has 3 train clips and rank 1 has 2" in str(error)


def test_batch_norms_that_gradient_caching_freezes_untrained_are_reported(make_trainer: Callable, caplog):
    trainer = make_trainer(micro_batch_size=2)
    log_untrained_norms(trainer)
    assert "these have not seen a batch; set trainer.micro_batch_norm=micro" in caplog.text
    caplog.clear()
    for options in ({"micro_batch_size": 6}, {"micro_batch_size": 2, "micro_batch_norm": "micro"}):
        log_untrained_norms(make_trainer(**options))
    assert not caplog.text

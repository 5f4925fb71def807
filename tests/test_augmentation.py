"""Augmentation of batches: what changes, what stays, and what mixtures are positives of."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from device_reads import NoWaiting
from ramps import make_dataset
from test_state import interrupt_after

from clap.augmentation import Changes, choose_partners, draw_changes, join_captions, join_groups
from clap.config.augmentation_settings import AugmentationSettings
from clap.dataset.loader import Batch, Collate, make_loader, prefetch
from clap.training.trainer import ClapTrainer

EVERYTHING = AugmentationSettings(gain=6.0, polarity=0.5, shift=0.001, mix=1.0)
RATE = 16_000


def draw(settings: AugmentationSettings, lengths: list[int], seed: tuple[int, ...] = (0, 0, 0)) -> Changes:
    return draw_changes(settings, seed, lengths=lengths, groups=range(len(lengths)), sample_rate=RATE)


def tokenize(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[len(caption)] for caption in captions])
    return ids, ids > 0


def test_gain_and_polarity_scale_a_clip_within_their_range():
    waveform = torch.rand(200, 50) * 0.1
    changed = draw(AugmentationSettings(gain=6.0, polarity=0.5), [50] * 200).apply(waveform)
    factor = changed[:, :1] / waveform[:, :1]
    torch.testing.assert_close(changed, factor * waveform)
    decibels = 20 * factor.abs().log10()
    assert -6 <= decibels.min() < -5 and 5 < decibels.max() <= 6
    assert 60 < (factor < 0).sum() < 140


def test_shift_rotates_a_clip_within_its_length():
    waveform = torch.zeros(50, 12)
    waveform[:, :10] = torch.linspace(0.1, 1, 10)
    changed = draw(AugmentationSettings(shift=3 / RATE), [10] * 50).apply(waveform)
    rotations = {tuple(waveform[0, :10].roll(shift).tolist()) for shift in range(-3, 4)}
    assert {tuple(row[:10].tolist()) for row in changed} == rotations and not changed[:, 10:].any()


def test_mixture_is_the_sum_of_two_clips_at_the_drawn_levels():
    first, second = torch.sin(torch.arange(1000) / 5) * 0.1, torch.sin(torch.arange(1000) / 3) * 0.4
    changes = draw(AugmentationSettings(mix=1.0, mix_level=6.0), [1000, 1000])
    mixed = changes.apply(torch.stack([first, second]))
    for row, own, added in ((0, first, second), (1, second, first)):
        level = changes.level[row]
        expected = own + level * added * own.norm() / added.norm()
        torch.testing.assert_close(mixed[row], expected / (1 + level**2).sqrt())
    assert (20 * changes.level.log10()).abs().max() <= 6


def test_changed_waveforms_stay_within_full_scale():
    changed = draw(AugmentationSettings(gain=20.0), [50] * 20).apply(torch.rand(20, 50) * 2 - 1)
    assert changed.abs().max() <= 1


@pytest.mark.parametrize("lengths", [[7], [5, 7], [0, 4, 9]])
def test_short_and_silent_clips_stay_finite(lengths: list[int]):
    waveform = torch.zeros(len(lengths), 9)
    assert draw(EVERYTHING, lengths).apply(waveform).isfinite().all()


def test_nothing_is_read_from_the_device():
    changes = draw(EVERYTHING, [50, 60, 70]).to("meta", non_blocking=True)
    with NoWaiting():
        assert changes.apply(torch.zeros(3, 70, device="meta")).shape == (3, 70)


def test_partners_are_mutual_and_of_other_groups():
    groups = np.random.default_rng(0).integers(0, 4, 101)
    partner = choose_partners(groups, probability=1.0, rng=np.random.default_rng(1))
    mixed = partner != np.arange(101)
    assert np.array_equal(partner[partner], np.arange(101)) and 60 < mixed.sum() < 100
    assert (groups[partner] != groups)[mixed].all()
    share = [choose_partners(np.arange(100), probability=0.3, rng=np.random.default_rng(i)) for i in range(20)]
    assert 0.2 < np.mean(np.array(share) != np.arange(100)) < 0.4


def test_mixtures_of_the_same_groups_are_positives_of_each_other_only():
    groups, partner = [0, 1, 0, 1, 2, 0], [1, 0, 3, 2, 5, 4]
    joined = join_groups([*groups, 0, 1], [*partner, 6, 7])
    assert joined[0] == joined[1] == joined[2] == joined[3] != joined[4] == joined[5]
    assert joined[6:] == [0, 1] and len(set(joined)) == 4
    assert -(2**63) <= min(join_groups([2**31 - 1, 2**31 - 2], [1, 0]))


def test_captions_of_mixtures_name_both_clips():
    captions = ["A dog barks.", "Rain falls.", "MRI scan", "a bell"]
    joined = [
        "A dog barks and rain falls.",
        "Rain falls and a dog barks.",
        "MRI scan and a bell",
        "a bell and MRI scan",
    ]
    assert join_captions(captions, [1, 0, 3, 2]) == joined
    assert join_captions(captions, range(4)) == captions


def make_batch(ramps: list, *, training: bool = True, epoch: int = 0, cache: Path | None = None) -> Batch:
    dataset = make_dataset(ramps, "train", training=training, cache=cache)
    settings = AugmentationSettings(gain=6.0, shift=0.001, mix=1.0)
    collate = Collate(tokenize, augmentation=settings, sample_rate=dataset.sample_rate)
    return collate([dataset[(epoch, position)] for position in range(4)])


def test_batch_has_the_captions_tokens_and_lengths_of_the_mixtures(ramps: list):
    plain, batch = make_batch(ramps, training=False), make_batch(ramps)
    partner = batch.changes.partner.tolist()
    assert sorted(partner) == [0, 1, 2, 3] and partner != [0, 1, 2, 3]
    for row, other in enumerate(partner):
        assert batch.lengths[row] == max(plain.lengths[row], plain.lengths[other])
        assert (" and " in batch.captions[row]) == (row != other)
    assert torch.equal(batch.token_ids[:, 0], torch.tensor([len(caption) for caption in batch.captions]))
    assert set(batch.clip_ids.tolist()).isdisjoint(plain.clip_ids.tolist())


def test_evaluation_is_not_augmented(ramps: list):
    batch = make_batch(ramps, training=False)
    assert batch.changes is None and not any(" and " in caption for caption in batch.captions)


def test_changes_depend_on_seed_epoch_and_clips_alone(ramps: list):
    torch.manual_seed(0)
    first, again, other = make_batch(ramps), make_batch(ramps), make_batch(ramps, epoch=1)
    for name in (field.name for field in fields(Changes)):
        assert torch.equal(getattr(first.changes, name), getattr(again.changes, name))
    assert not torch.equal(first.changes.gain, other.changes.gain)


@pytest.mark.parametrize("cached", [False, True])
def test_waveforms_change_once_on_the_way_to_the_device(ramps: list, tmp_path: Path, cached: bool):
    batch = make_batch(ramps, cache=tmp_path if cached else None)
    moved = batch.to("cpu")
    assert batch.samples.dtype == (torch.int16 if cached else torch.float32)
    torch.testing.assert_close(moved.waveform, batch.changes.apply(batch.waveform))
    assert moved.changes is None and torch.equal(moved.to("cpu").waveform, moved.waveform)


def test_changes_are_pinned(ramps: list, monkeypatch: pytest.MonkeyPatch):
    batch, pinned = make_batch(ramps), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(id(tensor)) or tensor.clone())
    assert batch.pin_memory().changes is not batch.changes
    assert {id(tensor) for tensor in vars(batch.changes).values()} < set(pinned)


def test_workers_draw_the_same_changes(ramps: list):
    dataset = make_dataset(ramps, "train", training=True)
    collate = Collate(tokenize, augmentation=EVERYTHING, sample_rate=dataset.sample_rate)
    options = {"batch_size": 4, "shuffle": True}
    loaders = [make_loader(dataset, collate, num_workers=count, **options) for count in (0, 2)]
    for one, other in zip(*(prefetch(loader, torch.device("cpu")) for loader in loaders), strict=True):
        assert torch.equal(one.waveform, other.waveform) and one.captions == other.captions


def test_augmented_training_resumes_exactly(make_trainer: Callable, tmp_path: Path):
    def make() -> ClapTrainer:
        trainer = make_trainer(epochs=2)
        trainer.clap.augment(AugmentationSettings(gain=6.0, mix=0.5, frame_out=0.25))
        trainer.train_loader.collate_fn = trainer.clap.collate
        return trainer

    whole = make()
    whole.fit(tmp_path / "whole")
    stopped = make()
    stopped.train_step = interrupt_after(stopped, 3)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    resumed = make()
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.fit(tmp_path / "stopped")
    for name, tensor in whole.clap.state_dict().items():
        assert torch.equal(tensor, resumed.clap.state_dict()[name]), name

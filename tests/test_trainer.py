"""ClapTrainer in Python: training, choosing the best checkpoint, stopping and resuming."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

from clap import ClapDataset, ClapTrainer, SymmetricCrossEntropyLoss
from clap.dataset.loader import make_loader
from clap.dataset.synthetic import Synthetic
from clap.evaluation.zero_shot import ZeroShot
from clap.training.trainer_settings import TrainerSettings


@pytest.fixture
def make_trainer(tiny_clap: Callable) -> Callable[..., ClapTrainer]:
    """`make_trainer(...)` -> a trainer of a tiny model on a dozen synthetic scenes, two steps an epoch."""

    def make(epochs: int = 2, *, lr: float = 1e-3, evaluators: dict | None = None, **options) -> ClapTrainer:
        torch.manual_seed(0)
        clap = tiny_clap()
        corpus = Synthetic(num_train=12, num_val=6, num_test=6)
        loaders = []
        for kind in ("train", "val", "test"):
            dataset = ClapDataset(corpus, kind, sample_rate=clap.sample_rate, window=clap.window)
            shuffle = kind == "train"
            loaders.append(make_loader(dataset, clap.collate, batch_size=6, num_workers=0, shuffle=shuffle))
        optimizer = AdamW(clap.parameters(), lr=lr)
        settings = TrainerSettings(**options)
        criterion = SymmetricCrossEntropyLoss()
        return ClapTrainer(*loaders, clap, optimizer, criterion, epochs, evaluators=evaluators, settings=settings)

    return make


def test_train_and_eval_writes_the_metrics_it_returns(make_trainer: Callable, tmp_path: Path):
    metrics = make_trainer().train_and_eval(out_path=tmp_path / "run.v1")
    assert json.loads((tmp_path / "run.v1" / "metrics.json").read_text()) == metrics
    assert "test/synthetic/text_to_audio/recall_at_1" in metrics


def test_plain_data_loaders_work(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    for name in ("train_loader", "val_loader", "test_loader"):
        loader = getattr(trainer, name)
        shuffle = name == "train_loader"
        plain = DataLoader(loader.dataset, batch_size=6, shuffle=shuffle, collate_fn=trainer.clap.collate)
        setattr(trainer, name, plain)
    assert trainer.train_and_eval(tmp_path)
    assert trainer.step == 4


def test_captions_are_tokenised_once(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(max_steps=1)
    trainer.fit(tmp_path)
    captions = trainer.train_loader.dataset.captions + trainer.val_loader.dataset.captions
    assert not trainer.clap.tokenizer.encode(captions)


def test_training_lowers_the_loss(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=12, log_every=1)
    losses = []
    trainer.log_metrics = lambda metrics: losses.append(metrics.get("train/loss"))
    trainer.fit(tmp_path)
    losses = [loss for loss in losses if loss is not None]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_max_steps_ends_training_inside_an_epoch(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=5, max_steps=3)
    trainer.fit(tmp_path)
    assert trainer.step == 3


def test_patience_ends_training_without_a_better_validation(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=20, lr=0.0, patience=2)
    trainer.clap.freeze(["audio_encoder"])  # or its batch statistics would still change
    trainer.fit(tmp_path)
    assert trainer.epoch == 3


def test_best_checkpoint_is_the_one_with_the_highest_monitor(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=4)
    found = []
    trainer.log_metrics = lambda metrics: found.append(metrics.get(trainer.monitors[0]))
    trainer.fit(tmp_path)
    assert trainer.best_metric == max(value for value in found if value is not None)
    assert trainer.best_metrics[trainer.monitors[0]] == trainer.best_metric


def test_test_split_without_labels_is_refused_before_training(make_trainer: Callable):
    labels = {"val": "beep", "test": None}
    clips = Synthetic.clips
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Synthetic, "clips", lambda self, split: [replace(c, label=labels.get(split)) for c in clips(self, split)]
        )
        with pytest.raises(ValueError, match=r"no clip of synthetic \(test\) has a label; choose evaluation="):
            make_trainer(evaluators={"zero_shot": ZeroShot()})


def test_tracker_gets_the_numbers_of_clips_as_tags(make_trainer: Callable, tmp_path: Path):
    trainer, tags = make_trainer(epochs=1), {}
    trainer.tracker = SimpleNamespace(
        set_tags=tags.update, log_metrics=lambda *_, **__: None, flush=lambda: None, run_id=""
    )
    trainer.train_and_eval(tmp_path)
    sizes = {"train": "12 of 12", "val": "6 of 6", "test": "6 of 6"}
    assert tags == {f"{split}/synthetic/clips": f"{size} clips" for split, size in sizes.items()}


def test_unknown_monitor_is_refused_before_training(make_trainer: Callable):
    with pytest.raises(ValueError, match=r"trainer.monitor=val/loss is not one of val/synthetic/text_to_audio"):
        make_trainer(monitor="val/loss")


def test_without_validation_the_last_checkpoint_is_the_best(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    trainer.val_loader, trainer.monitors = None, []
    trainer.fit(tmp_path)
    best, last = (tmp_path / "checkpoints" / name / "model.safetensors" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_trainer_ends_with_the_same_weights(make_trainer: Callable, tmp_path: Path, stop_after: int):
    whole = make_trainer(epochs=3)
    whole.fit(tmp_path / "whole")
    stopped = make_trainer(epochs=3)
    stopped.train_step = interrupt_after(stopped, stop_after)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    resumed = make_trainer(epochs=3)
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.fit(tmp_path / "stopped")
    for name, tensor in whole.clap.state_dict().items():
        assert torch.equal(tensor, resumed.clap.state_dict()[name]), name


def test_bad_loss_names_step_and_clips_and_keeps_the_checkpoint(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.fit(tmp_path)
    before = (tmp_path / "checkpoints" / "last" / "model.safetensors").read_bytes()
    trainer.epochs = 2
    trainer.criterion.forward = lambda *inputs: torch.tensor(float("nan"))
    with pytest.raises(ValueError, match=r"loss is nan at step 3 \(epoch 2, batch 1: train-"):
        trainer.fit(tmp_path)
    assert (tmp_path / "checkpoints" / "last" / "model.safetensors").read_bytes() == before


def test_frozen_text_encoder_stays_as_it_was(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    trainer.clap.freeze(["text_encoder"])
    before = {name: tensor.clone() for name, tensor in trainer.clap.text_encoder.state_dict().items()}
    trainer.fit(tmp_path)
    after = trainer.clap.text_encoder.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_bf16_trains(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1, precision="bf16")
    trainer.fit(tmp_path)
    assert trainer.step == 2


def test_logit_scale_stays_below_its_bound(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.optimizer = SGD(trainer.clap.parameters(), lr=0.0)
    trainer.clap.logit_scale.data.fill_(9.0)
    trainer.fit(tmp_path)
    assert trainer.clap.logit_scale.exp().item() == pytest.approx(100.0)


def test_batch_of_one_is_refused(make_trainer: Callable):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="a contrastive batch needs two clips"):
        make_loader(trainer.train_loader.dataset, trainer.clap.collate, batch_size=1, num_workers=0, shuffle=True)


def interrupt_after(trainer: ClapTrainer, steps: int) -> Callable:
    """The trainer's own step, with a Ctrl-C during the given one."""
    take_step = trainer.train_step

    def step(*arguments) -> None:
        take_step(*arguments)
        if trainer.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return step

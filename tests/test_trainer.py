"""ClapTrainer in Python: training, choosing the best checkpoint, stopping and resuming."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler

from clap import ClapTrainer, SymmetricCrossEntropyLoss
from clap.dataset.loader import make_loader
from clap.dataset.synthetic import Synthetic
from clap.evaluation.results import Evaluation
from clap.evaluation.retrieval import Retrieval
from clap.evaluation.zero_shot import ZeroShot
from clap.training import intervals, stopwatch
from clap.training.cost import forward_flops
from clap.training.finite import MIN_LOSS_SCALE, StepGuard
from clap.training.preflight import log_ineffective_settings
from clap.training.trainer_settings import TrainerSettings


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


def test_distributed_sampler_has_another_order_in_each_epoch(make_trainer: Callable, tmp_path: Path):
    trainer, orders = make_trainer(), []
    dataset = trainer.train_loader.dataset
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
    trainer.train_loader = DataLoader(dataset, batch_size=12, sampler=sampler, collate_fn=trainer.clap.collate)
    trainer.train_step = lambda batch, step: orders.append(batch.index.tolist())
    trainer.save_or_validate = trainer.end_epoch = lambda *args: None
    trainer.log_training = lambda bar: None
    trainer.fit(tmp_path)
    assert len(orders) == 2 and orders[0] != orders[1]


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
    trainer.log_metrics = lambda metrics: found.append(metrics.get(trainer.validation.monitors[0]))
    trainer.fit(tmp_path)
    assert trainer.validation.best_metric == max(value for value in found if value is not None)
    assert trainer.validation.best_metrics[trainer.validation.monitors[0]] == trainer.validation.best_metric


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
        set_tags=tags.update,
        log_metrics=lambda *_, **__: None,
        flush=lambda: None,
        run_id="",
        run_name="",
        url_hint="",
    )
    trainer.train_and_eval(tmp_path)
    sizes = {"train": "12 of 12", "val": "6 of 6", "test": "6 of 6"}
    assert tags == {f"{split}/synthetic/clips": f"{size} clips" for split, size in sizes.items()}


def test_unknown_monitor_is_refused_before_training(make_trainer: Callable):
    with pytest.raises(ValueError, match=r"trainer.monitor=val/loss is not one of val/synthetic/text_to_audio"):
        make_trainer(monitor="val/loss")


def test_without_validation_the_last_checkpoint_is_the_best(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    trainer.validation.sets[0].loaders.pop("val")
    trainer.fit(tmp_path)
    best, last = (tmp_path / "checkpoints" / name / "model.safetensors" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()


def test_speed_leaves_out_validation_and_saving(make_trainer: Callable, tmp_path: Path, monkeypatch):
    now, trainer, speeds, saves = [0.0], make_trainer(epochs=3, log_every=3, save_every=1), [], []
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def take(method: Callable, seconds: float) -> Callable:
        def call(*arguments: object) -> object:
            now[0] += seconds
            return method(*arguments)

        return call

    save = trainer.save
    trainer.save = lambda name: (saves.append(name), save(name))
    for name, seconds in {"train_step": 2.0, "batches": 1.0, "save": 50.0, "evaluate": 100.0}.items():
        setattr(trainer, name, take(getattr(trainer, name), seconds))
    trainer.log_metrics = lambda metrics: speeds.append(metrics.get("train/clips_per_second"))
    trainer.fit(tmp_path)
    assert [speed for speed in speeds if speed] == [18 / 8, 18 / 7]  # 3 steps of 6 clips, and two or one epoch starts
    cost = trainer.cost()
    assert cost["clips_per_second"] == round(36 / 15, 1)
    assert cost["seconds"] == 15 + 3 * 100 + 50 * len(saves)


def test_logged_learning_rate_is_that_of_the_step(make_trainer: Callable, tmp_path: Path):
    trainer, found = make_trainer(epochs=2, log_every=1), []
    trainer.scheduler = LambdaLR(trainer.optimizer, lambda step: 4 - step)
    trainer.log_metrics = lambda metrics: found.append(metrics.get("train/learning_rate"))
    trainer.fit(tmp_path)
    assert [rate for rate in found if rate is not None] == pytest.approx([4e-3, 3e-3, 2e-3, 1e-3])


def test_gigaflops_are_those_of_the_mean_length_in_training(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.fit(tmp_path)
    assert trainer.cost()["gigaflops_per_clip"] == round(forward_flops(trainer.clap) / 1e9, 3)
    assert trainer.meter.samples_seen == 12 * trainer.clap.sample_rate  # clips are longer than the window, 1 s
    trainer.clap.set_windows("mean")
    trainer.meter.samples_seen *= 3
    longer = forward_flops(trainer.clap, duration=3.0)
    assert trainer.cost()["gigaflops_per_clip"] == round(longer / 1e9, 3) > round(forward_flops(trainer.clap) / 1e9, 3)


def test_bad_loss_names_step_and_clips_and_keeps_the_checkpoint(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.fit(tmp_path)
    before = (tmp_path / "checkpoints" / "last" / "model.safetensors").read_bytes()
    trainer.epochs = 2
    trainer.criterion.forward = lambda audio, *others: audio.sum() * math.nan
    with pytest.raises(ValueError, match=r"loss is nan at step 3 \(epoch 2, batch 1: train-"):
        trainer.fit(tmp_path)
    assert (tmp_path / "checkpoints" / "last" / "model.safetensors").read_bytes() == before


def spoil_gradient(trainer: ClapTrainer, value: float) -> str:
    """Set a gradient of the text projection to a value in each backward pass; returns the parameter's name."""
    weight = trainer.clap.text_projection.linear2.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    return "text_projection.linear2.weight"


def test_gradient_that_is_not_finite_stops_before_the_weights(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    before = {name: tensor.clone() for name, tensor in trainer.clap.named_parameters()}
    trainer.optimizer.param_groups[0]["name"] = "rest/decay"
    name = spoil_gradient(trainer, math.nan)
    with pytest.raises(ValueError, match=rf"the gradient of {name} is nan \(parameter group rest/decay\) at step 1 "):
        trainer.fit(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.clap.named_parameters())
    assert not (tmp_path / "checkpoints").exists()


def test_norm_of_gradients_beyond_float32_stops_the_run(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    spoil_gradient(trainer, 1e30)
    with pytest.raises(ValueError, match="the norm of the gradients exceeds float32 at step 1 "):
        trainer.fit(tmp_path)


def test_scaler_skips_infinite_gradients_until_its_scale_is_used_up(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4 * MIN_LOSS_SCALE)
    trainer.scaler = trainer.guard.scaler = trainer.objective.scaler = scaler
    before = {name: tensor.clone() for name, tensor in trainer.clap.named_parameters()}
    spoil_gradient(trainer, math.inf)
    with pytest.raises(ValueError, match=r"the gradient of .* is inf at step 3 "):
        trainer.fit(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.clap.named_parameters())


@pytest.mark.parametrize("save_every", [None, 1])
def test_bad_last_step_is_not_saved(make_trainer: Callable, tmp_path: Path, save_every: int | None):
    trainer = make_trainer(epochs=1, save_every=save_every, max_steps=1)
    spoil_gradient(trainer, math.nan)
    with pytest.raises(ValueError, match=r"the gradient of .* is nan at step 1 "):
        trainer.fit(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_bad_loss_is_not_logged(make_trainer: Callable, tmp_path: Path):
    trainer, logged = make_trainer(epochs=1, log_every=1), []
    trainer.log_metrics = logged.append
    spoil_gradient(trainer, math.nan)
    with pytest.raises(ValueError, match=r"is nan at step 1 "):
        trainer.fit(tmp_path)
    assert not logged


def test_weights_that_are_not_finite_are_not_saved(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.fit(tmp_path)
    trainer.clap.audio_encoder.bn0.running_var[0] = math.inf
    for name in ("last", "best"):
        saved = (tmp_path / "checkpoints" / name / "model.safetensors").read_bytes()
        with pytest.raises(ValueError, match="audio_encoder.bn0.running_var is inf after step 2; checkpoints stay"):
            trainer.save(name)
        assert (tmp_path / "checkpoints" / name / "model.safetensors").read_bytes() == saved


def test_gradients_are_not_clipped_without_a_norm(make_trainer: Callable, tmp_path: Path):
    norms = []
    for max_norm in (None, 1e-3):
        trainer = make_trainer(epochs=1, max_steps=1, max_grad_norm=max_norm)
        trainer.fit(tmp_path / str(max_norm))
        gradients = [p.grad for p in trainer.clap.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
    assert norms[0] > 0.01 and norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_settings_without_effect_are_reported(make_trainer: Callable, tmp_path: Path, caplog):
    trainer = make_trainer(epochs=2, eval_every=3, log_every=9)
    trainer.validation.sets[0].loaders.pop("test")
    dataset = trainer.train_loader.dataset
    trainer.train_loader = DataLoader(dataset, batch_size=11, shuffle=True, collate_fn=trainer.clap.collate)
    log_ineffective_settings(trainer)
    trainer.validation.sets[0].loaders.pop("val")
    log_ineffective_settings(trainer)
    for words in (
        "eval_every=3 epochs is longer",
        "log_every=9 is more than the 4",
        "single clip",
        "no test",
        "no val",
    ):
        assert words in caplog.text
    caplog.clear()
    log_ineffective_settings(make_trainer(epochs=5))
    assert not caplog.text


def test_epoch_without_a_batch_is_refused(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    dataset, collate = trainer.train_loader.dataset, trainer.clap.collate
    trainer.train_loader = DataLoader(dataset, batch_size=13, drop_last=True, collate_fn=collate)
    with pytest.raises(ValueError, match="an epoch of 12 training clips has no batch"):
        trainer.fit(tmp_path)


@pytest.mark.parametrize("option", [{"monitor": "val/synthetic/text_to_audio/recall_at_1"}, {"patience": 2}])
def test_monitor_and_patience_without_validation_are_refused(make_trainer: Callable, option: dict):
    trainer = make_trainer()
    loaders = (trainer.train_loader, None, trainer.test_loader)
    with pytest.raises(ValueError, match="need a validation split, and the dataset has none"):
        ClapTrainer(*loaders, trainer.clap, trainer.optimizer, trainer.criterion, settings=TrainerSettings(**option))


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


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_fixed_logit_scale_is_not_trained(make_trainer: Callable, tmp_path: Path, micro_batch_size: int | None):
    scales = []
    for learn in (True, False):
        trainer = make_trainer(max_steps=2, micro_batch_size=micro_batch_size)
        start = trainer.clap.logit_scale.item()
        criterion = SymmetricCrossEntropyLoss(learn_logit_scale=learn)
        loaders = trainer.loaders.values()
        trainer = ClapTrainer(*loaders, trainer.clap, trainer.optimizer, criterion, settings=trainer.settings)
        trainer.fit(tmp_path / str(learn))
        scales.append(trainer.clap.logit_scale.item() - start)
    assert scales[0] != 0 and scales[1] == 0


def test_training_without_a_trained_parameter_is_refused(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer()
    trainer.clap.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trained"):
        trainer.fit(tmp_path)


def test_validations_within_an_epoch_are_by_steps_and_none_is_repeated(make_trainer: Callable, tmp_path: Path):
    trainer, steps = make_trainer(epochs=3, eval_every=3, eval_every_steps=2, max_steps=5), []
    evaluate = trainer.evaluate
    trainer.evaluate = lambda loader: (steps.append(trainer.step), evaluate(loader))[1]
    trainer.fit(tmp_path)
    assert steps == [2, 4, 5]


def test_validations_and_saves_are_by_minutes(make_trainer: Callable, tmp_path: Path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(intervals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    trainer, found = make_trainer(epochs=3, eval_every=3, eval_every_minutes=3, save_every_minutes=2), []
    trainer.train_loader.batch_sampler.batch_size = 2  # six steps an epoch
    step, save, evaluate = trainer.train_step, trainer.save, trainer.evaluate
    trainer.train_step = lambda *batch: (step(*batch), now.__setitem__(0, now[0] + 60))
    trainer.save = lambda name: (found.append((name, trainer.step)), save(name))
    trainer.evaluate = lambda loader: (found.append(("val", trainer.step)), evaluate(loader))[1]
    trainer.fit(tmp_path)
    assert [at for name, at in found if name == "val"] == [4, 8, 12, 16, 18]
    assert sorted({at for name, at in found if name == "last"}) == [3, 4, 6, 8, 11, 12, 15, 16, 18]


def test_logit_scale_stays_below_its_bound(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.optimizer = SGD(trainer.clap.parameters(), lr=0.0)
    trainer.guard = StepGuard(trainer.optimizer, trainer.scaler, trainer.named_parameters)
    trainer.clap.logit_scale.data.fill_(9.0)
    trainer.fit(tmp_path)
    assert trainer.clap.logit_scale.exp().item() == pytest.approx(100.0)


def test_batch_of_one_is_refused(make_trainer: Callable):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="a contrastive batch needs two clips"):
        make_loader(trainer.train_loader.dataset, trainer.clap.collate, batch_size=1, num_workers=0, shuffle=True)


def test_second_training_in_a_folder_is_refused(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(max_steps=1)
    trainer.train_and_eval(tmp_path)
    best = tmp_path / "checkpoints" / "best" / "model.safetensors"
    before = best.stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"holds a run .*; give another out_path, or resume this run"):
        make_trainer(max_steps=1).train_and_eval(tmp_path)
    assert best.stat().st_mtime_ns == before
    trainer.train_and_eval(tmp_path)  # the trainer of this run may go on


@pytest.mark.parametrize("best", [True, False])
def test_run_resumed_into_another_folder_has_the_best_checkpoint_there(
    make_trainer: Callable, tmp_path: Path, best: bool
):
    make_trainer(epochs=2).fit(tmp_path / "a")
    weights = tmp_path / "a" / "checkpoints" / "best" / "model.safetensors"
    before = weights.read_bytes()
    if not best:
        shutil.rmtree(weights.parent)
    trainer = make_trainer(epochs=2 if best else 3)
    trainer.resume(tmp_path / "a" / "checkpoints" / "last")
    trainer.train_and_eval(tmp_path / "b")
    copied = (tmp_path / "b" / "checkpoints" / "best" / "model.safetensors").read_bytes()
    assert (copied == before) is best


def test_full_disk_names_the_file_and_the_checkpoint_that_is_complete(
    make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(epochs=1)
    trainer.fit(tmp_path)
    last = tmp_path / "checkpoints" / "last"
    before = (last / "trainer.pt").read_bytes()

    def fill_disk(*_: object) -> None:
        raise RuntimeError("unexpected pos 802368") from OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_disk)
    with pytest.raises(OSError, match=r"trainer.pt: not written \(No space left on device\)\); the previous .*last is"):
        trainer.save("last")
    assert (last / "trainer.pt").read_bytes() == before
    assert [path.name for path in last.parent.iterdir() if path.suffix] == []


class Unreportable(Retrieval):
    def write_report(self, result: Evaluation, folder: Path) -> None:
        raise KeyError("glyph")


def test_metrics_do_not_depend_on_the_report_of_an_evaluator(make_trainer: Callable, tmp_path: Path, caplog):
    metrics = make_trainer(epochs=1, evaluators={"retrieval": Unreportable()}).train_and_eval(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics and (tmp_path / "cost.json").is_file()
    assert "lacks tables or pictures of evaluation retrieval: KeyError: 'glyph'" in caplog.text

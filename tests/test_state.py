"""Where a run resumes from, and that it ends exactly as an uninterrupted one."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from clap import ClapTrainer
from clap.checkpoint import TRAINER, find_resume
from clap.dataset.loader import make_loader
from clap.optimizer import learning_rate_factor
from clap.training.state import extend_origin, read_run_id, read_trainer_state


def test_resume_auto_without_a_checkpoint_starts_from_scratch(tmp_path: Path):
    assert find_resume("auto", tmp_path) is None


def test_resume_from_a_folder_without_training_state_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"trainer.pt is missing .*; the folder holds config.yaml"):
        find_resume(str(tmp_path), tmp_path)


def test_resume_finds_the_last_checkpoint_of_a_run(tmp_path: Path):
    last = tmp_path / "run" / "checkpoints" / "last"
    last.mkdir(parents=True)
    assert find_resume(str(tmp_path / "run"), tmp_path) == find_resume("auto", tmp_path / "run") == last


def test_run_without_a_checkpoint_has_no_run_id():
    assert read_run_id(None) is None


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


def test_run_with_workers_resumes_exactly_and_ends_them(make_trainer: Callable, tmp_path: Path):
    def make(num_workers: int) -> ClapTrainer:
        trainer = make_trainer(epochs=3)
        options = {"batch_size": 2, "num_workers": num_workers, "shuffle": True}
        trainer.train_loader = make_loader(trainer.train_loader.dataset, trainer.clap.collate, **options)
        return trainer

    whole, stopped, resumed = make(0), make(2), make(2)
    others = set(multiprocessing.active_children())
    whole.fit(tmp_path / "whole")
    stopped.train_step = interrupt_after(stopped, 8)  # in the middle of the second epoch
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    assert others >= set(multiprocessing.active_children())
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.fit(tmp_path / "stopped")
    assert others >= set(multiprocessing.active_children())
    for name, tensor in whole.clap.state_dict().items():
        assert torch.equal(tensor, resumed.clap.state_dict()[name]), name


def test_validation_that_was_interrupted_is_repeated_before_training(make_trainer: Callable, tmp_path: Path):
    whole = make_trainer(epochs=3, patience=9)
    whole.train_and_eval(tmp_path / "whole")
    for ends in (1, 2, 3):  # at each validation
        trainer = make_trainer(epochs=3, patience=9)
        if ends > 1:
            trainer.resume(tmp_path / "stopped" / "checkpoints" / "last")
            assert trainer.validation_pending
        evaluate, calls = trainer.evaluate, []
        stop = len(calls) + (1 if ends == 1 else 2)

        def fail(loader, evaluate=evaluate, calls=calls, stop=stop):
            calls.append(loader)
            if len(calls) == stop:
                raise ValueError("no clip of the val split can be used")
            return evaluate(loader)

        trainer.evaluate = fail
        with pytest.raises(ValueError, match="no clip of the val split"):
            trainer.fit(tmp_path / "stopped")
        assert trainer.step == 2 * ends
    resumed = make_trainer(epochs=3, patience=9)
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    resumed.train_and_eval(tmp_path / "stopped")
    assert resumed.step == 6
    for name in ("metrics.json", "checkpoints/best/model.safetensors", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [read_trainer_state(tmp_path / run / "checkpoints" / "last") for run in ("whole", "stopped")]
    for key in ("best", "position", "validation_pending", "clips_seen", "samples_seen"):
        assert states[0][key] == states[1][key]


@pytest.mark.parametrize("stopped_in", ["evaluation", "save"])
def test_run_stopped_in_a_validation_within_an_epoch_ends_the_same(
    make_trainer: Callable, tmp_path: Path, stopped_in: str
):
    options = {"epochs": 2, "eval_every_steps": 1, "patience": 9}
    whole, stopped = make_trainer(**options), make_trainer(**options)
    whole.fit(tmp_path / "whole")
    save, evaluate, evaluated = stopped.save, stopped.evaluate, []

    def stop_in_evaluation(loader: object) -> object:
        evaluated.append(stopped.step)
        if stopped.step == 3 and stopped_in == "evaluation":
            raise KeyboardInterrupt
        return evaluate(loader)

    def stop_in_save(name: str) -> None:
        if 3 in evaluated:
            raise KeyboardInterrupt
        save(name)

    stopped.save, stopped.evaluate = stop_in_save, stop_in_evaluation
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(tmp_path / "stopped")
    resumed = make_trainer(**options)
    resumed.resume(tmp_path / "stopped" / "checkpoints" / "last")
    assert (resumed.step, resumed.step_in_epoch, resumed.validation_pending) == (3, 1, True)
    resumed.fit(tmp_path / "stopped")
    assert resumed.validation.since_best == whole.validation.since_best
    for name in ("best", "last"):
        weights = (tmp_path / run / "checkpoints" / name / "model.safetensors" for run in ("whole", "stopped"))
        assert len({path.read_bytes() for path in weights}) == 1


def test_run_killed_after_writing_best_validates_again(make_trainer: Callable, tmp_path: Path):
    whole, killed = make_trainer(epochs=2), make_trainer(epochs=2)
    whole.fit(tmp_path / "whole")
    save, saved = killed.save, []

    def die(name: str) -> None:
        saved.append(name)
        if saved == ["last", "best", "last"]:
            raise KeyboardInterrupt
        save(name)

    killed.save = die
    with pytest.raises(KeyboardInterrupt):
        killed.fit(tmp_path / "killed")
    resumed = make_trainer(epochs=2)
    resumed.resume(tmp_path / "killed" / "checkpoints" / "last")
    resumed.fit(tmp_path / "killed")
    assert resumed.validation.since_best == whole.validation.since_best
    for name in ("best", "last"):
        weights = (tmp_path / run / "checkpoints" / name / "model.safetensors" for run in ("whole", "killed"))
        assert len({path.read_bytes() for path in weights}) == 1


def test_peak_memory_of_a_resumed_run_includes_the_first_part(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.meter.peaks = {"peak_memory_bytes": 10**15}
    trainer.fit(tmp_path)
    resumed = make_trainer(epochs=2)
    resumed.resume(tmp_path / "checkpoints" / "last")
    assert resumed.cost()["peak_memory_bytes"] == 10**15


def train_part(make_trainer: Callable, folder: Path, **options) -> Path:
    """Train one epoch; returns the last checkpoint."""
    make_trainer(epochs=1, **options).fit(folder)
    return folder / "checkpoints" / "last"


def test_resume_with_another_learning_rate_is_refused_and_loads_nothing(make_trainer: Callable, tmp_path: Path):
    last = train_part(make_trainer, tmp_path)
    resumed = make_trainer(epochs=2, lr=2e-3)
    before = {name: tensor.clone() for name, tensor in resumed.clap.state_dict().items()}
    with pytest.raises(ValueError, match=r"trained with lr=0.001 in the optimizer's group 0, now it is 0.002"):
        resumed.resume(last)
    assert resumed.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in resumed.clap.state_dict().items())


def test_resume_on_other_clips_is_refused(make_trainer: Callable, tmp_path: Path):
    last = train_part(make_trainer, tmp_path)
    resumed = make_trainer(epochs=2)
    dataset = resumed.val_loader.dataset
    dataset.clips = [*dataset.clips[:-1], replace(dataset.clips[-1], captions=("another caption",))]
    with pytest.raises(
        ValueError, match=r"the val split had 6 clips and has 6, the first difference is clip 6, now val-"
    ):
        resumed.resume(last)


def test_schedule_of_a_longer_training_is_applied(make_trainer: Callable, tmp_path: Path):
    def make(epochs: int) -> ClapTrainer:
        trainer = make_trainer(epochs=epochs)
        factor = partial(learning_rate_factor, warmup_steps=0, total_steps=2 * epochs, schedule="cosine")
        trainer.scheduler = LambdaLR(trainer.optimizer, factor)
        return trainer

    make(1).fit(tmp_path)
    resumed = make(4)
    resumed.resume(tmp_path / "checkpoints" / "last")
    assert resumed.optimizer.param_groups[0]["lr"] == resumed.scheduler.base_lrs[0] * resumed.scheduler.lr_lambdas[0](2)
    assert resumed.optimizer.param_groups[0]["lr"] > 0
    resumed.fit(tmp_path)
    assert resumed.step == 8


def test_resumed_trainer_logs_the_same_losses(make_trainer: Callable, tmp_path: Path):
    whole, first, second = (make_trainer(epochs=3, log_every=3) for _ in range(3))
    first.train_step = interrupt_after(first, 2)
    losses: list[list[float]] = [[], []]
    for trainer, found in ((whole, losses[0]), (first, losses[1]), (second, losses[1])):
        trainer.log_metrics = lambda metrics, found=found: found.append(metrics.get("train/loss"))
    whole.fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        first.fit(tmp_path / "stopped")
    second.resume(tmp_path / "stopped" / "checkpoints" / "last")
    second.fit(tmp_path / "stopped")
    logged = [[loss for loss in some if loss is not None] for some in losses]
    assert len(logged[0]) == 2 and logged[0] == logged[1]


def test_checkpoint_of_an_earlier_version_resumes(make_trainer: Callable, tmp_path: Path, caplog):
    last = train_part(make_trainer, tmp_path)
    state = read_trainer_state(last)
    for key in (
        "validation_pending",
        "samples_seen",
        "train_seconds",
        "logged_time",
        "peaks",
        "settings",
        "data",
        "origin",
        "unlogged",
        "parts",
        "logged_parts",
        "ema",
        "kept",
    ):
        del state[key]
    state["random"] = state["random"][0]  # of the only process
    torch.save(state | {"problems": {3: "3.wav: empty"}}, last / "trainer.pt")
    resumed = make_trainer(epochs=2)
    resumed.resume(last)
    assert "earlier version, which recorded neither settings nor data" in caplog.text
    assert resumed.skipped.problems == {resumed.train_loader.dataset.clips[3].id: "3.wav: empty"}
    assert extend_origin(resumed.origin, machine="b")["machine"] == ["unknown", "b"]
    resumed.fit(tmp_path)
    assert resumed.step == 4


def test_origin_of_a_resumed_run_has_both_commits_in_order(
    make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commits = iter(["a", "b", None])  # None: outside git
    monkeypatch.setattr("clap.training.state.git_commit", lambda folder: next(commits))
    trainer = make_trainer(epochs=1)
    trainer.origin = extend_origin(trainer.origin, machine="2 CPU cores")
    trainer.fit(tmp_path)
    resumed = make_trainer(epochs=2)
    resumed.resume(tmp_path / "checkpoints" / "last")
    origin = extend_origin(resumed.origin, machine="2 CPU cores")
    assert origin == {"git_commit": ["a", "b"], "machine": ["2 CPU cores"]}
    assert extend_origin(origin, machine="2 CPU cores") == origin


def interrupt_after(trainer: ClapTrainer, steps: int) -> Callable:
    """The trainer's own step, with a Ctrl-C during the given one."""
    take_step = trainer.train_step

    def step(*arguments) -> None:
        take_step(*arguments)
        if trainer.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return step


def test_best_checkpoint_suggests_the_last(tmp_path):
    for name in ("best", "last"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "last" / TRAINER).touch()
    with pytest.raises(FileNotFoundError, match="no trainer.pt; to resume `last`, set resume=.*/last"):
        find_resume(str(tmp_path / "checkpoints" / "best"), tmp_path)

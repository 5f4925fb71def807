"""Where a run resumes from, and that it ends exactly as an uninterrupted one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clap import ClapTrainer
from clap.checkpoint import find_resume
from clap.training.state import read_run_id, read_trainer_state


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
    assert resumed.evaluations_since_best == whole.evaluations_since_best
    for name in ("best", "last"):
        weights = (tmp_path / run / "checkpoints" / name / "model.safetensors" for run in ("whole", "killed"))
        assert len({path.read_bytes() for path in weights}) == 1


def test_peak_memory_of_a_resumed_run_includes_the_first_part(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    trainer.peaks = {"peak_memory_bytes": 10**15}
    trainer.fit(tmp_path)
    resumed = make_trainer(epochs=2)
    resumed.resume(tmp_path / "checkpoints" / "last")
    assert resumed.cost()["peak_memory_bytes"] == 10**15


def interrupt_after(trainer: ClapTrainer, steps: int) -> Callable:
    """The trainer's own step, with a Ctrl-C during the given one."""
    take_step = trainer.train_step

    def step(*arguments) -> None:
        take_step(*arguments)
        if trainer.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return step

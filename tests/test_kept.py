"""Checkpoints that a run keeps besides `best` and `last`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clap.checkpoint import TRAINER, WEIGHTS, read_weights
from clap.model import Clap
from clap.training import kept
from clap.training.kept import KeptCheckpoints, find_steps
from clap.training.state import read_trainer_state
from clap.training.trainer_settings import TrainerSettings

METRICS = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.1, 5: 0.6, 6: 0.2}  # of the validation after each step


def write_run(folder: Path, lists: KeptCheckpoints, steps: range = range(1, 7)) -> None:
    """The writes of a trainer that validates after each step; a checkpoint has its step as its weights."""

    def write(name: str, step: int) -> None:
        target = folder / name
        with lists.replacing(target, step):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / WEIGHTS).write_text(str(step))
            if name == "last":
                (target / TRAINER).touch()

    for step in steps:
        lists.add_last(step)
        write("last", step)
        best = max([metric for metric, _ in lists.best], default=-1.0)
        if lists.add_validation(METRICS[step], step):
            write("best" if METRICS[step] >= best else f"step-{step:06d}", step)
        write("last", step)


def read_run(folder: Path) -> dict[str, str]:
    """Name -> step of the checkpoints of a run, with a + if they can be resumed."""
    return {
        path.name: (path / WEIGHTS).read_text() + "+" * (path / TRAINER).exists() for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize(
    ("best", "last", "extra"),
    [
        (1, 1, {}),
        (1, 3, {"step-000004": "4+", "step-000005": "5+"}),
        (3, 1, {"step-000001": "1", "step-000003": "3"}),
        (3, 2, {"step-000001": "1", "step-000003": "3", "step-000005": "5+"}),
    ],
)
def test_best_and_latest_checkpoints_stay(tmp_path: Path, best: int, last: int, extra: dict):
    write_run(tmp_path, KeptCheckpoints(TrainerSettings(keep_best=best, keep_last=last)))
    assert read_run(tmp_path) == {"best": "5", "last": "6+", **extra}


def test_kept_files_are_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: str, target: str) -> None:
        raise OSError("no hard links")

    for is_linked in (True, False):
        folder = tmp_path / str(is_linked)
        with monkeypatch.context() as patch:
            if not is_linked:
                patch.setattr(os, "link", fail)
            write_run(folder, KeptCheckpoints(TrainerSettings(keep_last=3)), range(1, 3))
            kept.link_folder(folder / "last", folder / "again")
        assert (folder / "step-000001" / WEIGHTS).read_text() == "1"
        assert (folder / "again" / WEIGHTS).samefile(folder / "last" / WEIGHTS) == is_linked


def test_equal_validations_keep_the_later():
    lists = KeptCheckpoints(TrainerSettings(keep_best=2))
    assert all(lists.add_validation(0.5, step) for step in (1, 2, 3))
    assert lists.best == [(0.5, 3), (0.5, 2)] and not lists.add_validation(0.4, 4)


@pytest.mark.parametrize("calls", range(1, 40))
def test_kill_at_any_change_of_the_disk_leaves_whole_checkpoints(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, calls: int
):
    """Killed at a rename, link or deletion, then resumed: the folders are those of a run that was not."""
    tmp_path = tmp_path_factory.mktemp("killed")
    done = []

    def count(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            done.append(function)
            if len(done) == calls:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    lists, state = KeptCheckpoints(TrainerSettings(keep_best=3, keep_last=2)), ([], [], 0)

    def write_steps(first: int) -> None:
        nonlocal state
        for step in range(first, 5):
            write_run(tmp_path, lists, range(step, step + 1))
            state = (lists.last, lists.best, step)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", count(Path.rename))
        patch.setattr(os, "link", count(os.link))
        patch.setattr(Path, "unlink", count(Path.unlink))
        try:
            write_steps(1)
        except KeyboardInterrupt:
            for path in find_steps(tmp_path).values():
                assert int((path / WEIGHTS).read_text()) == int(path.name.split("-")[1])
    lists = KeptCheckpoints(TrainerSettings(keep_best=3, keep_last=2))
    lists.last, lists.best = state[:2]
    if (tmp_path / "last").is_dir():
        (tmp_path / "last" / WEIGHTS).write_text(str(state[2]))  # as the state
    lists.begin(tmp_path, tmp_path.resolve() / "last")
    write_steps(state[2] + 1)
    expected = {"best": "1", "last": "4+", "step-000002": "2", "step-000003": "3+"}
    assert read_run(tmp_path) == expected


def test_run_keeps_checkpoints_over_a_resume(make_trainer: Callable, tmp_path: Path):
    options = {"keep_best": 2, "keep_last": 3}
    make_trainer(epochs=3, **options).fit(tmp_path / "whole")
    make_trainer(epochs=1, **options).fit(tmp_path / "resumed")
    resumed = make_trainer(epochs=3, **options)
    resumed.resume(tmp_path / "resumed" / "checkpoints" / "last")
    resumed.fit(tmp_path / "resumed")
    folders = [tmp_path / name / "checkpoints" for name in ("whole", "resumed")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert {"step-000002", "step-000004"} <= set(names)
    assert names == sorted(path.name for path in folders[1].iterdir())
    for name in names:
        weights = [read_weights(folder / name) for folder in folders]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
        assert (folders[0] / name / TRAINER).exists() == (folders[1] / name / TRAINER).exists()
    assert read_trainer_state(folders[0] / "step-000004")["position"]["step"] == 4


def test_kept_checkpoint_is_read_and_resumed(make_trainer: Callable, tmp_path: Path):
    whole = make_trainer(epochs=3, keep_last=2)
    whole.fit(tmp_path)
    step = tmp_path / "checkpoints" / "step-000004"
    assert Clap.from_ckpt(step).embed_dim == whole.clap.embed_dim
    resumed = make_trainer(epochs=3, keep_last=2)
    resumed.resume(step)
    assert resumed.step == 4
    resumed.fit(tmp_path)
    assert all(torch.equal(value, resumed.clap.state_dict()[key]) for key, value in whole.clap.state_dict().items())


def test_best_of_a_run_that_returns_to_an_earlier_step_is_its_own(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=3, keep_last=3)
    trainer.fit(tmp_path)
    trainer.validation.best_metric = 2.0
    resumed = make_trainer(epochs=3, keep_last=3, lr=1e-3)
    resumed.resume(tmp_path / "checkpoints" / "step-000002")
    found = []
    evaluate = resumed.evaluate
    resumed.evaluate = lambda loader: (found.append(resumed.step), evaluate(loader))[1]
    resumed.fit(tmp_path)
    assert found == [2, 4, 6]
    assert resumed.validation.best_metric == resumed.kept.best[0][0] <= 1
    assert sorted(find_steps(tmp_path / "checkpoints")) == [2, 4]

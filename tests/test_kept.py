"""Checkpoints that a run keeps besides `best` and `last`."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clap.checkpoint import TRAINER, WEIGHTS, read_weights, recover, write_folder
from clap.model import Clap
from clap.training import kept
from clap.training.kept import KeptCheckpoints, find_steps, name_step
from clap.training.state import read_trainer_state
from clap.training.trainer_settings import TrainerSettings

METRICS = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.1, 5: 0.6, 6: 0.2}  # of the validation after each step


class Run:
    """The writes of a trainer that validates after each step; the weights of a checkpoint are its step."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.folder, self.lists = folder, KeptCheckpoints(TrainerSettings(**options))
        self.step, self.pending = 0, False

    def train(self, steps: int) -> None:
        if self.pending:
            self.validate()
        while self.step < steps:
            self.step, self.pending = self.step + 1, True
            self.save("last")
            self.validate()

    def validate(self) -> None:
        metric, best = METRICS[self.step], max([metric for metric, _ in self.lists.best], default=-1.0)
        if self.lists.add_validation(metric, self.step):
            self.save("best" if metric >= best else name_step(self.step))
        self.pending = False
        self.save("last")

    def save(self, name: str) -> None:
        if name == "last":
            self.lists.add_last(self.step)
        state = json.dumps([self.lists.last, self.lists.best, self.step, self.pending])

        def write(folder: Path) -> None:
            (folder / WEIGHTS).write_text(str(self.step))
            if name == "last":
                (folder / TRAINER).write_text(state)

        with self.lists.replacing(self.folder / name, self.step):
            write_folder(self.folder / name, write)

    def resume(self) -> None:
        recover(self.folder / "last")
        if not (self.folder / "last").exists():  # killed in its first write
            return
        self.lists.last, best, self.step, self.pending = json.loads((self.folder / "last" / TRAINER).read_text())
        self.lists.best = [tuple(entry) for entry in best]
        self.lists.begin(self.folder, self.folder.resolve() / "last")


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
    Run(tmp_path, keep_best=best, keep_last=last).train(6)
    assert read_run(tmp_path) == {"best": "5", "last": "6+", **extra}


def test_kept_files_are_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: str, target: str) -> None:
        raise OSError("no hard links")

    for is_linked in (True, False):
        folder = tmp_path / str(is_linked)
        with monkeypatch.context() as patch:
            if not is_linked:
                patch.setattr(os, "link", fail)
            Run(folder, keep_last=3).train(2)
            kept.link_folder(folder / "last", folder / "again")
        assert (folder / "step-000001" / WEIGHTS).read_text() == "1"
        assert (folder / "again" / WEIGHTS).samefile(folder / "last" / WEIGHTS) == is_linked


def test_equal_validations_keep_the_later():
    lists = KeptCheckpoints(TrainerSettings(keep_best=2))
    assert all(lists.add_validation(0.5, step) for step in (1, 2, 3))
    assert lists.best == [(0.5, 3), (0.5, 2)] and not lists.add_validation(0.4, 4)


def train_until_killed(run: Run, calls: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Train; whether the run was killed at a rename, link or deletion of a file, the `calls`-th."""
    done = []

    def count(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            done.append(function)
            if len(done) == calls:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (os, "link"), (Path, "unlink")):
            patch.setattr(owner, name, count(getattr(owner, name)))
        try:
            run.train(6)
        except KeyboardInterrupt:
            return True
    return False


def test_kill_at_any_change_of_the_disk_leaves_whole_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options, calls = {"keep_best": 3, "keep_last": 2}, 1
    while train_until_killed(Run(tmp_path / str(calls), **options), calls, monkeypatch):
        for number, path in find_steps(tmp_path / str(calls)).items():
            assert (path / WEIGHTS).read_text() == str(number)
        resumed = Run(tmp_path / str(calls), **options)
        resumed.resume()
        resumed.train(6)
        kept = {"step-000001": "1", "step-000003": "3", "step-000005": "5+"}
        assert read_run(resumed.folder) == {"best": "5", "last": "6+", **kept}, calls
        calls += 1
    assert calls > 20


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


def test_checkpoints_of_one_step_share_the_file_of_their_weights(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=2, ema_decay=0.5, eval_every=2)
    trainer.fit(tmp_path)
    files = {name: tmp_path / "checkpoints" / name / WEIGHTS for name in ("best", "last", "ema")}
    assert files["best"].samefile(files["last"]) and not files["best"].samefile(files["ema"])
    weights = read_weights(files["best"].parent)
    assert all(weights[name].equal(value) for name, value in trainer.clap.state_dict().items())
    assert not all(weights[name].equal(value) for name, value in read_weights(files["ema"].parent).items())


def test_weights_of_another_step_are_a_file_of_their_own(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=2, save_every=1)
    files, save = [], trainer.save
    trainer.save = lambda name: (
        save(name),
        files.append((trainer.step, (trainer.checkpoints / name / WEIGHTS).stat().st_ino)),
    )
    trainer.fit(tmp_path)
    assert len(dict.fromkeys(files)) == len({step for step, _ in files}) == 4

"""Checkpoints that a run keeps besides `best` and `last`: checkpoints/step-000123."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clap import checkpoint
from clap.process_group import broadcast_object, is_main
from clap.training import ema
from clap.training.trainer_settings import TrainerSettings

NAME = re.compile(r"step-(\d+)")


class KeptCheckpoints:
    """The steps whose checkpoints a run keeps (`trainer.keep_best`, `trainer.keep_last`), and their folders.

    A `best` or `last` that is replaced becomes checkpoints/step-000123, of hard links where the file system has them.
    The steps are part of the training state. A folder is deleted after the state without it is on the disk, so that a
    run that is killed at any instant finds all folders of its state.

    Attributes:
        last: steps of the latest writes of `last`, that of `last` at the end.
        best: (metric, step) of the best validations, that of `best` at the start; step 0 is unknown.
        on_disk: steps of `best` and `last` in the folder of this run.
        spared: steps of folders that a run does not know because it resumed from an earlier one; they stay.
        weights: step and file of the weights that this process has written last.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        self.keep_best, self.keep_last = settings.keep_best, settings.keep_last
        self.last: list[int] = []
        self.best: list[tuple[float, int]] = []
        self.on_disk: dict[str, int] = {}
        self.spared: set[int] = set()
        self.weights: tuple[int, Path] | None = None

    def find_weights(self, name: str, step: int) -> Path | None:
        """A file of the same weights as those of a checkpoint `name` of a step, which it links to; None if unknown."""
        is_same = name != ema.NAME and self.weights is not None and self.weights[0] == step
        return self.weights[1] if is_same and self.weights[1].is_file() else None

    @property
    def extra(self) -> set[int]:
        """Steps that are kept besides those of `best` and `last`."""
        return {*self.last[:-1], *(step for _, step in self.best[1:] if step)}

    def add_last(self, step: int) -> None:
        """Count a write of `last`."""
        if self.last[-1:] != [step]:
            self.last = [*self.last, step][-self.keep_last :]

    def add_validation(self, metric: float, step: int) -> bool:
        """Count a validation; whether it is among the best, of equal ones the later."""
        others = [entry for entry in self.best if entry[1] != step]
        better = [entry for entry in others if entry[0] > metric]
        self.best = [*better, (metric, step), *others[len(better) :]][: self.keep_best]
        return (metric, step) in self.best

    @contextmanager
    def replacing(self, folder: Path, step: int) -> Iterator[None]:
        """Keep a `best` or `last` that the body replaces by that of a step; after a `last`, delete what is not kept."""
        old = self.on_disk.get(folder.name)
        if old in self.extra - {step}:
            target = folder.with_name(name_step(old))
            # One of `best` that exists is complete, and `best` may be newer than the state of a run that was killed.
            if folder.name == "last" or old in self.spared or not target.is_dir():
                checkpoint.recover(folder)
                link_folder(folder, target)
                self.spared.discard(old)
        yield
        self.on_disk[folder.name] = step
        if folder.name != ema.NAME:
            self.weights = step, folder / checkpoint.WEIGHTS
        if folder.name == "last":
            self.prune(folder.parent)

    def prune(self, folder: Path) -> None:
        """Delete folders that are not kept, and the training state of those that are only among the best."""
        for step, path in find_steps(folder).items():
            if step not in self.extra | self.spared:
                hidden = path.with_name(f"{path.name}.new")  # never read
                shutil.rmtree(hidden, ignore_errors=True)
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
            elif step not in {*self.last[:-1], *self.spared}:
                (path / checkpoint.TRAINER).unlink(missing_ok=True)

    def begin(self, folder: Path, source: Path | None) -> None:
        """Find the kept checkpoints in checkpoints/ of a run that begins, or that resumes from `source`; collective."""
        if is_main():
            for path in folder.glob("step-*.*"):
                if path.suffix == ".new":
                    shutil.rmtree(path, ignore_errors=True)
                checkpoint.recover(path.with_suffix(""))
            steps = set(find_steps(folder))
            if source == folder.resolve() / "last":
                self.on_disk["last"] = self.last[-1] if self.last else -1
            if self.best and not is_step(source) and (folder / "best").is_dir():
                self.on_disk["best"] = self.best[0][1]
            known = {*steps, *self.on_disk.values()}
            self.last = [step for step in self.last if step in known][-self.keep_last :]
            self.best = [entry for entry in self.best if entry[1] in known][: self.keep_best]
            self.spared = steps - self.extra if is_step(source) else set()
        self.last, self.best = broadcast_object((self.last, self.best))


def name_step(step: int) -> str:
    """The name of the folder that keeps the checkpoint of a step."""
    return f"step-{step:06d}"


def is_step(folder: Path | None) -> bool:
    """Whether a checkpoint folder is one that was kept."""
    return folder is not None and NAME.fullmatch(folder.name) is not None


def find_steps(folder: Path) -> dict[int, Path]:
    """Step -> folder of the checkpoints that are kept in checkpoints/."""
    paths = [path for path in folder.glob("step-*") if is_step(path) and path.is_dir()]
    return {int(NAME.fullmatch(path.name)[1]): path for path in paths}


def link_folder(source: Path, target: Path) -> None:
    """Copy a checkpoint folder, atomically; its files become hard links where the file system has them."""
    checkpoint.write_folder(
        target, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=checkpoint.link_file)
    )

"""Checkpoint folders: atomic writes, and no execution of code."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clap import checkpoint
from clap.checkpoint import TRAINER, WEIGHTS, find_file, read_weights, recover, write_folder
from clap.training.state import read_trainer_state


def write_number(number: int):
    def write(folder: Path) -> None:
        safetensors.torch.save_file({"number": torch.tensor(number)}, folder / WEIGHTS)
        torch.save({"number": number}, folder / TRAINER)

    return write


def read_number(folder: Path) -> int:
    return read_weights(folder)["number"].item()


@pytest.fixture
def folder(tmp_path) -> Path:
    write_folder(tmp_path / "last", write_number(1))
    return tmp_path / "last"


def kill_at_rename(monkeypatch, number: int) -> None:
    """Simulate a kill at the `number`-th rename from now on."""
    rename, calls = Path.rename, []

    def dying(self, target):
        calls.append(self)
        if len(calls) == number:
            raise SystemExit("killed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)


def test_folder_is_replaced_without_leftovers(folder):
    write_folder(folder, write_number(2))
    assert read_number(folder) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value: float):
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.tensor([1.0, value])}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="model.safetensors: b has values that are not finite; give another"):
        read_weights(tmp_path)


def test_parent_folders_are_created(tmp_path):
    write_folder(tmp_path / "run" / "checkpoints" / "best", write_number(1))
    assert read_number(tmp_path / "run" / "checkpoints" / "best") == 1


@pytest.mark.parametrize("rename", [1, 2])
def test_kill_between_renames_keeps_the_old_folder_readable(folder, monkeypatch, rename):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        kill_at_rename(patch, rename)
        write_folder(folder, write_number(2))
    assert read_number(folder) == 1
    recover(folder)
    assert folder.is_dir() and read_number(folder) == 1


def test_kill_before_the_backup_is_deleted_keeps_the_new_folder(folder):
    write_folder(folder, write_number(2))
    folder.with_name("last.old").mkdir()
    assert read_number(folder) == 2
    write_folder(folder, write_number(3))
    assert read_number(folder) == 3 and not folder.with_name("last.old").exists()


def test_write_succeeds_after_a_kill(folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        kill_at_rename(patch, 2)
        write_folder(folder, write_number(2))
    write_folder(folder, write_number(3))
    assert read_number(folder) == 3
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


def test_reading_renames_nothing(folder):
    """A reader must not interfere with the renames of a run that is writing."""
    folder.rename(folder.with_name("last.old"))
    assert read_number(folder) == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        safetensors.SafetensorError("No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
    ],
)
def test_full_disk_keeps_the_old_folder(folder, error):
    def write(temporary: Path) -> None:
        (temporary / WEIGHTS).write_bytes(b"half")
        raise error

    with pytest.raises(OSError, match=f"{folder}: checkpoint not written .*the previous {folder} is complete"):
        write_folder(folder, write)
    assert read_number(folder) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


def test_missing_file_is_named_with_the_existing_files(folder):
    with pytest.raises(FileNotFoundError, match="config.yaml is missing.*holds model.safetensors, trainer.pt"):
        find_file(folder, checkpoint.CONFIG)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such checkpoint folder"):
        find_file(tmp_path / "absent", WEIGHTS)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("name", "read"), [(WEIGHTS, read_weights), (TRAINER, read_trainer_state)])
def test_error_of_a_truncated_file_is_one_line(folder, name, read, share):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=f"{name}: .*(damaged|truncated)") as error:
        read(folder)
    assert "\n" not in str(error.value)


class Touch:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickle_that_runs_a_command_is_refused(folder, tmp_path, save):
    save({"step": Touch(tmp_path / "ran")}, folder / TRAINER)
    with pytest.raises(ValueError, match="trainer.pt: refused") as error:
        read_trainer_state(folder)
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)

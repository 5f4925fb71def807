"""Checkpoint folders on disk: written whole or not at all, read without running anything that lies in them."""

import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

CONFIG, WEIGHTS, TOKENIZER, TRAINER = "config.yaml", "model.safetensors", "tokenizer", "trainer.pt"
HUGGING_FACE = "huggingface"  # the same model for transformers

# What a full disk raises: safetensors and torch.save have their own.
WRITE_ERRORS = (OSError, safetensors.SafetensorError, RuntimeError)
# What a damaged zip or pickle raises, depending on where it was hit.
READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then put it in its place.

    A kill at any instant leaves the old or the new one whole, under its own name or beside it (see `recover`).

    Raises:
        OSError: it could not be written.
    """
    temporary = folder.with_name(folder.name + ".new")
    recover(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        fsync_files(temporary)
    except WRITE_ERRORS as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder}: checkpoint not written ({error}); what was there before is untouched") from error
    if folder.exists():
        folder.rename(backup_folder(folder))
    temporary.rename(folder)
    shutil.rmtree(backup_folder(folder), ignore_errors=True)


def refuse_other_files(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder to write to that holds more than the named things, for write_folder would remove them.

    Raises:
        FileExistsError: it does, or it is a file.
    """
    other = sorted({item.name for item in folder.iterdir()} - set(names)) if folder.is_dir() else []
    if other or folder.is_file():
        what = f"holds {', '.join(other[:4])}" if other else "is a file"
        raise FileExistsError(f"{folder} {what}; give a new folder, or one that holds nothing else than a checkpoint")


def fsync_files(folder: Path) -> None:
    """Have every file on the disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def backup_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def recover(folder: Path) -> None:
    """Undo a replacement that was killed half way: the old folder, whole, gets its name back. For the writer alone."""
    old = backup_folder(folder)
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def find_best(path: Path) -> Path:
    """A checkpoint folder itself, or the best one of a run folder."""
    best = path / "checkpoints" / "best"
    return best if best.is_dir() or backup_folder(best).is_dir() else path


def find_file(folder: Path, name: str) -> Path:
    """The named file of a checkpoint folder; where a replacement was killed half way, of the old one.

    It renames nothing, for the run that the folder belongs to may be writing.
    """
    found = folder if folder.is_dir() else backup_folder(folder)
    if not found.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such checkpoint folder; a run's are checkpoints/best and checkpoints/last"
        )
    path = found / name
    if not path.exists():
        present = ", ".join(sorted(item.name for item in found.iterdir())) or "nothing"
        raise FileNotFoundError(f"{found}: {name} is missing from this checkpoint; the folder holds {present}")
    return path


def read_weights(folder: Path) -> dict[str, Tensor]:
    path = find_file(folder, WEIGHTS)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged or truncated ({error}); take another checkpoint") from None


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """What training needs beyond the weights: plain data and tensors only (`weights_only`)."""
    path = find_file(folder, TRAINER)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: refused, it is damaged or holds more than plain data and tensors; nothing in it was run; "
            "resume from another checkpoint"
        ) from None
    except READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: damaged or truncated ({reason}); resume from another checkpoint") from None

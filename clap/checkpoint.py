"""Checkpoint folders on disk: written whole or not at all, read without running anything that lies in them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

CONFIG, WEIGHTS, TOKENIZER, TRAINER = "config.yaml", "model.safetensors", "tokenizer", "trainer.pt"


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then put it in its place; a kill leaves the old or the new one."""
    temporary, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    recover(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        sync(temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder}: checkpoint not written ({error}); what was there before is untouched") from error
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def sync(folder: Path) -> None:
    """Have every file on the disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def recover(folder: Path) -> None:
    """Undo a replacement that was killed half way: the old folder, whole, gets its name back."""
    old = folder.with_name(folder.name + ".old")
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def find_file(folder: Path, name: str) -> Path:
    """The named file of a checkpoint folder."""
    recover(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such checkpoint folder; a run's are checkpoints/best and checkpoints/last"
        )
    path = folder / name
    if not path.exists():
        present = ", ".join(sorted(item.name for item in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"{folder}: {name} is missing from this checkpoint; the folder holds {present}")
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
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: damaged or truncated ({str(error).splitlines()[0]}); resume from another checkpoint"
        ) from None

"""Checkpoint folders: written atomically, and read without executing code from them. Imports no torch."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, TOKENIZER, TRAINER = "config.yaml", "model.safetensors", "tokenizer", "trainer.pt"
TRAIN_CLIPS = "train_clips.npy"  # digests of what it was trained on, see clap/dataset/leaks.py
HUGGING_FACE = "huggingface"  # subfolder with the same model for transformers

# Raised on a full disk; safetensors and torch.save have their own types.
WRITE_ERRORS = (OSError, safetensors.SafetensorError, RuntimeError)
# Raised by a damaged zip or pickle, depending on the damaged position.
READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary folder next to `folder`, then rename it to `folder`.

    After a kill at any instant, either the old or the new folder is complete, possibly as a backup (see `recover`).

    Raises:
        OSError: the folder cannot be written.
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
        kept = f"the previous {folder} is complete" if folder.exists() else f"there is no earlier {folder}"
        raise OSError(f"{folder}: checkpoint not written ({error}); {kept}") from error
    if folder.exists():
        folder.rename(backup_folder(folder))
    temporary.rename(folder)
    shutil.rmtree(backup_folder(folder), ignore_errors=True)


def link_file(source: str | Path, target: str | Path) -> None:
    """Make a hard link to a file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def refuse_other_files(folder: Path, names: Sequence[str]) -> None:
    """Check that a target folder contains only the named files, because `write_folder` deletes all others.

    Raises:
        FileExistsError: there are other files, or the target is a file.
    """
    other = sorted({item.name for item in folder.iterdir()} - set(names)) if folder.is_dir() else []
    if other or folder.is_file():
        what = f"holds {', '.join(other[:4])}" if other else "is a file"
        raise FileExistsError(f"{folder} {what}; give a new folder, or one with an earlier result only")


def fsync_files(folder: Path) -> None:
    """Flush every file to disk, before the folder is renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def backup_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def recover(folder: Path) -> None:
    """Finish or undo a replacement that was killed. Only the writer of the folder may call it."""
    old = backup_folder(folder)
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def find_best(path: Path) -> Path:
    """The best checkpoint of a run folder; any other path is returned unchanged."""
    best = path / "checkpoints" / "best"
    return best if best.is_dir() or backup_folder(best).is_dir() else path


def find_resume(resume: str | None, run_dir: Path) -> Path | None:
    """The `last` checkpoint that a run resumes from, None to start from scratch.

    Args:
        resume: `auto` for that of `run_dir`, if it exists; or a run folder or checkpoint folder.

    Raises:
        FileNotFoundError: the given folder has no training state.
    """
    if resume is None:
        return None
    folder = run_dir if resume == "auto" else Path(resume)
    last = folder / "checkpoints" / "last"
    recover(last)
    if last.is_dir():
        return last
    if resume == "auto":
        return None
    sibling = folder.parent / "last"
    if not (folder / TRAINER).exists() and (sibling / TRAINER).exists():
        raise FileNotFoundError(f"{folder}: this checkpoint has no {TRAINER}; to resume `last`, set resume={sibling}")
    find_file(folder, TRAINER)
    return folder


def find_file(folder: Path, name: str) -> Path:
    """Path of a file in a checkpoint folder, or in its backup if a replacement was killed.

    Renames nothing, because a run may be writing to the folder.
    """
    found = folder if folder.is_dir() else backup_folder(folder)
    if not found.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such checkpoint folder; give a run folder, or checkpoints/best or checkpoints/last of one"
        )
    path = found / name
    if not path.exists():
        present = ", ".join(sorted(item.name for item in found.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{found}: {name} is missing from this checkpoint; the folder holds {present}; give another checkpoint"
        )
    return path


def read_weights(folder: Path) -> dict[str, "Tensor"]:
    """The state dict of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged, or a value is not finite.
    """
    path = find_file(folder, WEIGHTS)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged or truncated ({error}); give another checkpoint") from None
    check_finite(weights, str(path))
    return weights


def check_finite(weights: Mapping[str, "Tensor"], where: str) -> None:
    """Check that weights have no nan and inf, with which every embedding would be nan.

    Raises:
        ValueError: a tensor has some.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{where}: {key} has values that are not finite; give another checkpoint")

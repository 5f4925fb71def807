"""What a resumed run needs."""

from pathlib import Path

from clap import checkpoint


def find_resume(resume: str | None, run_dir: Path) -> Path | None:
    """The `last` checkpoint to go on from: with `auto` this run's, if there is one; else that of a run, or a folder."""
    if resume is None:
        return None
    folder = run_dir if resume == "auto" else Path(resume)
    last = folder / "checkpoints" / "last"
    checkpoint.recover(last)
    if last.is_dir():
        return last
    if resume == "auto":
        return None
    checkpoint.find_file(folder, checkpoint.TRAINER)
    return folder


def read_run_id(folder: Path | None) -> str | None:
    """The MLflow run that a checkpoint belongs to."""
    return checkpoint.read_trainer_state(folder)["run_id"] if folder is not None else None

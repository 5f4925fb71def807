"""The configs that a run has trained with, in .hydra, which Hydra replaces at every start, also of a refused resume."""

import shutil
from pathlib import Path

HYDRA = ".hydra"


def keep_config(run_dir: Path) -> None:
    """Copy the config with which a run starts or resumes to .hydra/N, unless it equals the newest copy."""
    newest, number = find_newest(run_dir)
    if newest is None or read_lines(newest) != read_lines(run_dir / HYDRA):
        target = run_dir / HYDRA / str(number + 1)
        target.mkdir(parents=True, exist_ok=True)
        for file in (run_dir / HYDRA).glob("*.yaml"):
            shutil.copy(file, target)


def restore_config(run_dir: Path) -> None:
    """Restore .hydra from the newest copy: after a refused resume it has a config that the run did not train with."""
    newest, _ = find_newest(run_dir)
    if newest is not None and read_lines(newest) != read_lines(run_dir / HYDRA):
        for file in newest.glob("*.yaml"):
            shutil.copy(file, run_dir / HYDRA)


def find_newest(run_dir: Path) -> tuple[Path | None, int]:
    """The newest copy and its number; (None, 0) if there is none."""
    numbers = [int(path.name) for path in (run_dir / HYDRA).glob("*") if path.name.isdigit()]
    number = max(numbers, default=0)
    return (run_dir / HYDRA / str(number), number) if number else (None, 0)


def read_lines(folder: Path) -> list[str]:
    """The lines of a config without its key `resume`."""
    file = folder / "config.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line for line in lines if not line.startswith("resume:")]

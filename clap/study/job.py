"""A job of a sweep: its record in job.json, its name and its MLflow tags."""

import logging
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from clap import checkpoint
from clap.atomic import read_json, write_json
from clap.published.sources import FOLDER_FILES, SUFFIXES
from clap.run_folder import JOB_FILE, LOCK, SWEEP_FILE, is_running
from clap.study.factors import FOLD, REPEATS, SEED

log = logging.getLogger(__name__)

# The last parts of a path to a checkpoint that do not identify it.
UNNAMED = ("checkpoints", "best", "last", "ema", checkpoint.HUGGING_FACE, *FOLDER_FILES)
STEP = r"step-\d+"  # a kept checkpoint of a run
TIME = r"\d\d-\d\d-\d\d"  # begins the name of a run folder
COMMIT_LENGTH = 12
THEN = ", then "  # between the commits or machines of a resumed run
FINISHED, PRUNED = "finished", "pruned"  # status of a job that is not run again
POLL_SECONDS = 2.0


class Pruned(Exception):
    """A search has ended a job early, because others are better.

    Args:
        value: the metric of its last validation.
    """

    def __init__(self, reason: str, *, value: float) -> None:
        super().__init__(reason)
        self.value = value


@dataclass
class Job:
    """The state of one job of a sweep.

    Args:
        status: `running` (also after a kill), `finished`, `failed`, or `pruned` by the search that it is a trial of.
        config: the settings that its result depends on, {dotted key: value}.
        value: its return value, the metric that selects the best checkpoint.
        data: split -> number of clips and their digest, see `digest_data`.
        commits: of the code that ran it, more than one if it was resumed with another.
    """

    folder: Path
    name: str
    status: str
    config: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    error: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def write(self) -> None:
        write_json(self.folder / JOB_FILE, {key: value for key, value in vars(self).items() if key != "folder"})

    @property
    def problem(self) -> str | None:
        """Why the job has no valid result; None if it has one."""
        return self.error or {FINISHED: None, PRUNED: PRUNED}.get(self.status, "stopped")

    @property
    def is_unfinished(self) -> bool:
        """Whether the same command runs the job again."""
        return self.problem not in (None, PRUNED)


def shorten_commit(commit: str | None) -> str:
    """`0123456789ab`, with the suffix -dirty; several are joined by THEN; `unknown` for None."""
    names = (name.partition("-") for name in commit.split(THEN)) if commit else ()
    return THEN.join(f"{name[:COMMIT_LENGTH]}{dash}{rest}" for name, dash, rest in names) or "unknown"


def read_job(folder: Path) -> Job | None:
    """The job of a folder; None if it has not started."""
    values = read_json(folder / JOB_FILE)
    return Job(folder, **values) if values else None


def read_jobs(sweep_dir: Path) -> list[Job]:
    """All started jobs of a sweep, sorted by name."""
    jobs = [read_job(path.parent) for path in sorted(sweep_dir.glob(f"*/{JOB_FILE}"))]
    return sorted((job for job in jobs if job), key=lambda job: job.name)


def wait_for_jobs(sweep_dir: Path) -> None:
    """Wait for the jobs of a sweep that other processes run."""
    waited: list[str] = []
    while held := sorted(path.parent.name for path in sweep_dir.glob(f"*/{LOCK}") if is_running(path.parent)):
        if held != waited:
            log.info("waiting for jobs of another process: %s", ", ".join(held))
        waited = held
        time.sleep(POLL_SECONDS)


def job_tags() -> tuple[str | None, dict[str, str]]:
    """Name and tags of the MLflow run of the current job; (None, {}) outside of a sweep."""
    hydra, sweep = HydraConfig.get(), read_sweep()
    if not sweep:
        return None, {}
    swept = read_swept_levels()
    name = name_job(swept, groups=hydra.runtime.choices)
    tags = {"mlflow.parentRunId": sweep["run_id"], "study": sweep["study"], "job": name}
    return name, tags | {"folder": Path(hydra.runtime.output_dir).name} | swept


def read_sweep() -> dict[str, Any]:
    """sweep.json of the sweep of the current job; empty outside of a sweep."""
    hydra = HydraConfig.get()
    return read_json(Path(hydra.sweep.dir) / SWEEP_FILE) if hydra.mode == RunMode.MULTIRUN else {}


def read_swept_levels() -> dict[str, str]:
    """The levels of the current job as {key: value}; empty outside of a sweep."""
    swept = read_sweep().get("swept", ())
    return {key: value for key, value in job_levels(HydraConfig.get().overrides.task).items() if key in swept}


def name_source(source: str) -> str:
    """Short name of a checkpoint: of a run folder its name, with the date if it is a time, of a file its stem.

    `outputs/train/2026-01-31/10-20-30/checkpoints/best` gives `2026-01-31_10-20-30`, `630k-best.pt` gives `630k`.
    """
    path = os.path.abspath(source) if os.path.exists(source) else urlsplit(source).path
    parts = [unquote(part) for part in path.split("/") if part] or [source]
    while len(parts) > 1 and (parts[-1] in UNNAMED or re.fullmatch(STEP, parts[-1])):
        parts.pop()
    name = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", parts[-1])
    name = re.sub(r"[-_]best$", "", name) or name
    return f"{parts[-2]}_{name}" if re.match(TIME, name) and len(parts) > 1 else name


def job_levels(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides of a job as {key: value}, fold and seed last."""
    values = dict(line.lstrip("+").split("=", 1) for line in overrides)
    return {key: values[key] for key in sorted(values, key=lambda key: (key in REPEATS, key == SEED))}


def read_overrides(folder: Path) -> list[str]:
    """The overrides of the job in a folder, as Hydra recorded them; empty before it started."""
    path = folder / ".hydra" / "overrides.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []


def name_job(levels: Mapping[str, str], *, groups: Collection[str]) -> str:
    """Name of a job by its levels: `htsat_nano-gpt2_nano-lr=0.001-fold3-s0`."""
    parts = {key: f"{key.split('.')[-1]}={value}" for key, value in levels.items()}
    parts |= {key: value for key, value in levels.items() if key in groups}
    parts |= {key: f"s{value}" for key, value in levels.items() if key == SEED}
    parts |= {key: f"fold{value}" for key, value in levels.items() if key == FOLD}
    if source := levels.get("init_from"):
        parts["init_from"] = "from-scratch" if source == "null" else f"from-{name_source(source)}"
    return "-".join(parts.values()) or "job"

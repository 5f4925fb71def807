"""A job of a sweep: its record in job.json, its name and its MLflow tags."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from clap.atomic import read_json, write_json
from clap.run_folder import JOB_FILE, SWEEP_FILE, git_commit
from clap.study.factors import SEED


@dataclass
class Job:
    """The state of one job of a sweep.

    Args:
        status: `running` (also after a kill), `finished` or `failed`.
        config: the settings that its result depends on, {dotted key: value}.
        value: its return value, the metric that selects the best checkpoint.
    """

    folder: Path
    name: str
    status: str
    config: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    error: str | None = None

    def write(self) -> None:
        write_json(self.folder / JOB_FILE, {key: value for key, value in vars(self).items() if key != "folder"})

    @property
    def problem(self) -> str | None:
        """Why the job has no valid result; None if it has one."""
        return self.error or (None if self.status == "finished" else "stopped")


def read_job(folder: Path) -> Job | None:
    """The job of a folder; None if it has not started."""
    values = read_json(folder / JOB_FILE)
    return Job(folder, **values) if values else None


def read_jobs(sweep_dir: Path) -> list[Job]:
    """All started jobs of a sweep, sorted by name."""
    jobs = [read_job(path.parent) for path in sorted(sweep_dir.glob(f"*/{JOB_FILE}"))]
    return sorted((job for job in jobs if job), key=lambda job: job.name)


def job_tags() -> tuple[str | None, dict[str, str]]:
    """Name and tags of the MLflow run of the current job; (None, {}) outside of a sweep."""
    hydra = HydraConfig.get()
    sweep = read_json(Path(hydra.sweep.dir) / SWEEP_FILE) if hydra.mode == RunMode.MULTIRUN else {}
    if not sweep:
        return None, {}
    swept = {key: value for key, value in job_levels(hydra.overrides.task).items() if key in sweep["swept"]}
    name = name_job(swept, groups=hydra.runtime.choices)
    tags = {"mlflow.parentRunId": sweep["run_id"], "study": sweep["study"], "job": name}
    return name, tags | {"folder": Path(hydra.runtime.output_dir).name} | swept


def describe_run(seed: int, *, machine: str) -> tuple[str, dict[str, Any]]:
    """Name and MLflow tags of a training run; outside of a sweep it is named after its encoders, fusion and seed."""
    choices = HydraConfig.get().runtime.choices
    name, tags = job_tags()
    tags |= {group: choices[group] for group in ("audio_encoder", "text_encoder", "fusion", "dataset")}
    tags |= {"role": "train", "seed": seed, "git_commit": git_commit(Path(__file__).parent), "machine": machine}
    return name or f"{choices.audio_encoder}-{choices.text_encoder}-{choices.fusion}-s{seed}", tags


def job_levels(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides of a job as {key: value}, the seed last."""
    values = dict(line.split("=", 1) for line in overrides)
    return {key: values[key] for key in sorted(values, key=lambda key: key == SEED)}


def name_job(levels: Mapping[str, str], *, groups: Collection[str]) -> str:
    """Name of a job by its levels: `htsat_nano-gpt2_nano-lr=0.001-s0`."""
    parts = {key: f"{key.split('.')[-1]}={value}" for key, value in levels.items()}
    parts |= {key: value for key, value in levels.items() if key in groups}
    parts |= {key: f"s{value}" for key, value in levels.items() if key == SEED}
    return "-".join(parts.values()) or "job"

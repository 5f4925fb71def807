"""What the result of a job depends on, and whether a sweep's folder was started with the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clap.atomic import read_json
from clap.config import flatten
from clap.config.values import LOCAL_KEYS
from clap.run_folder import SWEEP_FILE
from clap.study.job import Job, read_jobs

FOLDER_KEY = "hydra.sweep.dir="


def read_result_config(config: DictConfig) -> dict[str, Any]:
    """What a job's result depends on, {dotted key: value}."""
    flat = flatten(OmegaConf.to_container(config, resolve=True))
    return {key: value for key, value in flat if changes_result(key) and not isinstance(value, dict | list)}


def changes_result(key: str) -> bool:
    """Does a dotted key of a config change what a run finds?"""
    return key not in LOCAL_KEYS and key.split(".")[0] != "study"


def has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / "last").exists()


def check_job_unchanged(before: Job, config: Mapping[str, Any]) -> None:
    """Refuse to keep a job, or to go on with it, whose yamls have changed since; job.json says so."""
    error = describe_change(before.folder, before.config, config, anew="the job")
    if before.error != error:
        before.error = error
        before.write()
    if error:
        raise ValueError(error)


def describe_change(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, anew: str) -> str | None:
    """The first setting that is not what a folder was started with, and what to do; None if all are."""
    key = next((key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)), None)
    return key and (
        f"{folder} was started with {key}={before.get(key)}, now it is {now.get(key)}; put it back, "
        f"delete the folder to run {anew} anew, or give {FOLDER_KEY}FOLDER for another sweep"
    )


def check_fixed_overrides(folder: Path, fixed: Sequence[str]) -> None:
    """More values of a factor join a sweep; other fixed settings would make it two."""
    before = read_json(folder / SWEEP_FILE).get("fixed", fixed)
    if changed := sorted(set(before) ^ set(fixed)):
        raise ValueError(
            f"{folder} holds a sweep with {' '.join(before) or 'no fixed settings'}; it differs in "
            f"{', '.join(changed)}; give {FOLDER_KEY}FOLDER for another one"
        )


def check_settings_unchanged(folder: Path, settings: Mapping[str, Any], swept: Sequence[str]) -> None:
    """Refuse to go on with a sweep whose yamls have changed since, before each of its jobs does."""
    if not any(job.status == "finished" or has_checkpoint(job.folder) for job in read_jobs(folder)):
        return
    before = read_json(folder / SWEEP_FILE).get("settings", settings)
    before, now = ({k: v for k, v in flat.items() if not k.startswith(tuple(swept))} for flat in (before, settings))
    if error := describe_change(folder, before, now, anew="all jobs"):
        raise ValueError(error)

"""The settings that the result of a job depends on, and checks that they match those of a sweep folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clap.atomic import read_json
from clap.config import flatten
from clap.config.build import update_node
from clap.config.values import LOCAL_KEYS
from clap.run_folder import SWEEP_FILE
from clap.study.job import Job, read_jobs

FOLDER_KEY = "hydra.sweep.dir="


def read_result_config(config: DictConfig) -> dict[str, Any]:
    """The settings that the result of a job depends on, {dotted key: value}."""
    flat = flatten(OmegaConf.to_container(config, resolve=True))
    return {key: value for key, value in flat if changes_result(key) and not isinstance(value, dict | list)}


def changes_result(key: str) -> bool:
    """Whether a dotted key changes the result of a run."""
    return key not in LOCAL_KEYS and key.split(".")[0] != "study"


def has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / "last").exists()


def check_job_unchanged(before: Job, config: Mapping[str, Any]) -> None:
    """Reject a finished or interrupted job whose settings have changed; record the error in job.json."""
    error = describe_change(before.folder, before.config, config, rerun="the job")
    if before.error != error:
        before.error = error
        before.write()
    if error:
        raise ValueError(error)


def update_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with the present names of classes, and without the log-mel arguments that are now classes."""
    updated = dict(settings)
    for target in [key for key in settings if key.split(".")[-1] == "_target_"]:
        prefix = target.removesuffix("_target_")
        own = [key for key in settings if key.startswith(prefix) and "." not in key.removeprefix(prefix)]
        node = update_node({key.removeprefix(prefix): updated.pop(key) for key in own})
        updated |= {f"{prefix}{name}": value for name, value in node.items()}
    return updated


def describe_change(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, rerun: str) -> str | None:
    """Error message for the first setting that differs from those of a folder; None if all match.

    Settings that an earlier version recorded are compared under their present names.
    """
    before, now = update_settings(before), update_settings(now)
    key = next((key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)), None)
    return key and (
        f"{folder} was started with {key}={before.get(key)}, now it is {now.get(key)}; restore the value, "
        f"delete the folder to run {rerun} from scratch, or set {FOLDER_KEY}FOLDER to start another sweep"
    )


def check_fixed_overrides(folder: Path, fixed: Sequence[str]) -> None:
    """Reject other fixed overrides than those of the sweep in a folder; more levels of a factor are allowed."""
    before = read_json(folder / SWEEP_FILE).get("fixed", fixed)
    if changed := sorted(set(before) ^ set(fixed)):
        raise ValueError(
            f"{folder} contains a sweep with {' '.join(before) or 'no fixed overrides'}, which differs in "
            f"{', '.join(changed)}; set {FOLDER_KEY}FOLDER to start another sweep"
        )


def check_settings_unchanged(folder: Path, settings: Mapping[str, Any], swept: Sequence[str]) -> None:
    """Reject resuming a sweep whose yamls have changed, before its jobs reject it one by one."""
    if not any(job.status == "finished" or has_checkpoint(job.folder) for job in read_jobs(folder)):
        return
    before = read_json(folder / SWEEP_FILE).get("settings", settings)
    before, now = ({k: v for k, v in flat.items() if not k.startswith(tuple(swept))} for flat in (before, settings))
    if error := describe_change(folder, before, now, rerun="all jobs"):
        raise ValueError(error)

"""The settings that the result of a job depends on, and checks that they match those of a sweep folder."""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clap import checkpoint
from clap.atomic import read_json
from clap.config.launch import format_error
from clap.config.output_folder import SWEEP_FOLDER
from clap.config.result_settings import find_changes, log_new_keys, read_result_settings
from clap.corpus import SPLITS
from clap.dataset.digest import digest_clips, hash_digests
from clap.dataset.evaluation_options import KEY as EVALUATION_DATASETS
from clap.dataset.evaluation_options import plan_evaluation_datasets
from clap.dataset.registry import open_corpus
from clap.run_folder import SWEEP_FILE
from clap.study.job import Job, read_jobs

log = logging.getLogger(__name__)


def read_result_config(config: DictConfig) -> dict[str, Any]:
    """The settings that the result of a job depends on, {dotted key: value}."""
    return read_result_settings(OmegaConf.to_container(config, resolve=True))


@functools.lru_cache(maxsize=16)
def _digest_datasets(nodes: str) -> dict[str, str]:
    """See `digest_data`; cached, since the jobs of a sweep share their data."""
    config = json.loads(nodes)
    others, config = plan_evaluation_datasets(config), config["dataset"]
    corpus = open_corpus(config)
    clips = {split: corpus.clips(split) for split in SPLITS}
    clips |= {f"{name} {split}": plan.corpus.clips(split) for name, plan in others.items() for split in plan.splits}
    found = {split: f"{len(own)} clips {hash_digests(digest_clips(own))}" for split, own in clips.items()}
    files = {key: config.get(key) for key in ("exclude", "rewritings")}
    files |= {f"exclude of {part.corpus.name}, {path}": path for part in corpus.parts for path in part.exclude}
    for key, path in files.items():
        if path:
            with open(path, "rb") as file:
                found[key] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found


WEIGHTS = ("init_from", "audio_encoder.pretrained", "text_encoder.pretrained")  # keys that may name files
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@functools.lru_cache(maxsize=64)
def _digest_file(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_weights(config: DictConfig) -> dict[str, str]:
    """{key: digest} of the local files with initial weights that a config names."""
    named = {key: OmegaConf.select(config, key) for key in WEIGHTS}
    found = {}
    for key, path in named.items():
        if not isinstance(path, str):  # true, false or null
            continue
        path = checkpoint.find_best(Path(path))
        files = sorted(path.glob("*.*")) if path.is_dir() else [path]
        files = [file for file in files if file.suffix in WEIGHT_SUFFIXES and file.is_file()]
        if files:
            digests = [_digest_file(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            found[key] = " ".join(digests)
    return found


def digest_data(config: DictConfig, *, reread: bool = True) -> dict[str, str]:
    """Number of clips and digest of each split, and digests of the list of excluded clips and of initial weights.

    Those of an evaluation dataset are under its name and the split.

    It covers ids, captions, labels and keywords as the index has them, not the recordings. Empty if the data cannot be
    read, which is an error of the job only if it runs.

    Args:
        reread: False: the data of an earlier job of this process, if there is one with these settings.
    """
    if reread:
        _digest_datasets.cache_clear()
    nodes = OmegaConf.to_container(config, resolve=True)
    nodes = {key: nodes[key] for key in ("dataset", "evaluation", EVALUATION_DATASETS) if nodes.get(key)}
    try:
        found = _digest_datasets(json.dumps(nodes, sort_keys=True)) if "dataset" in nodes else {}
        return found | digest_weights(config)
    except (OSError, ValueError) as error:
        log.warning("the data cannot be compared with that of earlier jobs: %s", format_error(error))
        return {}


def has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / "last").exists()


def check_job_unchanged(before: Job, now: Job) -> None:
    """Reject a finished or interrupted job whose settings or data have changed; record the error in job.json."""
    error = describe_change(before.folder, before.config, now.config, rerun="the job")
    error = error or describe_data_change(before.folder, before.data, now.data)
    if before.error != error:
        before.error = error
        before.write()
    if error:
        raise ValueError(error)


def describe_change(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, rerun: str) -> str | None:
    """Error message for the first setting that differs from those of a folder; None if all match."""
    log_new_keys(before, now)
    for key, (old, new) in find_changes(before, now).items():
        return (
            f"{folder} was started with {key}={old}, now it is {new}; restore the value, "
            f"delete the folder to run {rerun} from scratch, or set {SWEEP_FOLDER}=FOLDER to start another sweep"
        )
    return None


def describe_data_change(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Error message for the first split that differs from that of a job; None if all match or one is not known."""
    now = {key: digest for key, digest in now.items() if key in before or key not in WEIGHTS}  # older jobs have none
    if not before or not now or before == now:
        return None
    split = next(split for split in (*before, *now) if before.get(split) != now.get(split))
    old, new = (data.get(split, "not given") for data in (before, now))
    return (
        f"{folder} has a result on other data: {split} was {old}, now it is {new}; restore the files, delete the "
        f"folder to run the job from scratch, or set {SWEEP_FOLDER}=FOLDER to start another sweep"
    )


def check_same_data(job: Job) -> None:
    """Reject a job if another one of its sweep, with the same settings of the dataset, has a result on other data."""
    for other in read_jobs(job.folder.parent):
        changes = find_changes(other.config, job.config)
        is_alike = not any(key.startswith("dataset.") for key in changes)
        if other.status == "finished" and other.folder != job.folder and is_alike:
            same = [key for key in other.data | job.data if key not in WEIGHTS or key not in changes]
            before, now = ({key: job.data[key] for key in same if key in job.data} for job in (other, job))
            if error := describe_data_change(other.folder, before, now):
                raise ValueError(error)


def check_fixed_overrides(folder: Path, fixed: Sequence[str]) -> None:
    """Reject other fixed overrides than those of the sweep in a folder; more levels of a factor are allowed."""
    before = read_json(folder / SWEEP_FILE).get("fixed", fixed)
    if changed := sorted(set(before) ^ set(fixed)):
        raise ValueError(
            f"{folder} contains a sweep with {' '.join(before) or 'no fixed overrides'}, which differs in "
            f"{', '.join(changed)}; set {SWEEP_FOLDER}=FOLDER to start another sweep"
        )


def check_settings_unchanged(folder: Path, settings: Mapping[str, Any], swept: Sequence[str]) -> None:
    """Reject resuming a sweep whose yamls have changed, before its jobs reject it one by one."""
    if not any(job.status == "finished" or has_checkpoint(job.folder) for job in read_jobs(folder)):
        return
    before = read_json(folder / SWEEP_FILE).get("settings", settings)
    before, now = ({k: v for k, v in flat.items() if not k.startswith(tuple(swept))} for flat in (before, settings))
    if error := describe_change(folder, before, now, rerun="all jobs"):
        raise ValueError(error)

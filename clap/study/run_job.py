"""One job of a sweep, in whatever process a launcher starts: locked, kept if finished, resumed if not.

No sweeper is imported here: Hydra imports its plugins once more when it starts, and `clap.study.sweep` needs those.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clap.run_folder import LOCK
from clap.study.job import Job, job_tags, read_job
from clap.study.result_config import check_same, has_checkpoint, read_result_config

log = logging.getLogger(__name__)

LOCK_SECONDS = 1.0  # to wait for a job's lock: `is_held` takes it for a moment


def run_job(task: Callable[[DictConfig], Any], config: DictConfig) -> float | None:
    """Run one job of a sweep, unless it is finished or another process has it; nan stands for no result.

    An unfinished job goes on from its `last` checkpoint. What it raises is kept in job.json and raised again.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=LOCK_SECONDS)
    except Timeout:
        log.warning("%s: another process is running it", folder.name)
        return math.nan
    with lock:
        job = Job(folder, job_tags()[0] or folder.name, status="running", config=read_result_config(config))
        before = read_job(folder)
        if before and (before.status == "finished" or has_checkpoint(folder)):
            check_same(before, job.config)
        if before and before.status == "finished":
            log.info("%s: finished before, kept", job.name)
            return before.value
        return run_locked(task, config, job)


def run_locked(task: Callable[[DictConfig], Any], config: DictConfig, job: Job) -> float | None:
    job.write()
    if config.get("resume", "") is None:
        config.resume = "auto"
    try:
        delete_lost_runs(config.tracking, job.folder)
        job.value = task(config)
        job.status = "finished"
    except Exception as error:
        job.status, job.error = "failed", one_line(error)
        track_failure(config.tracking, job)
        raise
    finally:
        job.write()
    return job.value


def delete_lost_runs(tracking: Mapping[str, Any], folder: Path) -> None:
    """Delete runs of this job that its folder knows nothing of: it was deleted, or a kill came before it was told."""
    from clap.tracking.store import open_store, resolve_uri
    from clap.tracking.tracker import recorded_run

    _, tags = job_tags()
    parent, uri = tags.get("mlflow.parentRunId"), resolve_uri(tracking["uri"])
    if not uri or not parent or recorded_run(folder, uri) or has_checkpoint(folder):
        return
    client = open_store(uri)
    experiment = client.get_run(parent).info.experiment_id
    mine = f"tags.`mlflow.parentRunId` = '{parent}' and tags.folder = '{folder.name}'"
    for run in client.search_runs([experiment], mine):
        client.delete_run(run.info.run_id)


def track_failure(tracking: Mapping[str, Any], job: Job) -> None:
    """See that a job which failed outside of its tracker, even before it had a run, is a failed run in MLflow."""
    from clap.tracking.tracker import Tracker, recorded_run

    if recorded_run(job.folder, tracking["uri"]):
        end_run(tracking, job, "FAILED")
        return
    name, tags = job_tags()
    tags |= {"role": "train", "error": job.error}
    with contextlib.suppress(ValueError, OSError):  # what is wrong with the store may be why the job failed
        Tracker(**tracking, run_name=name, run_dir=job.folder, tags=tags).finish("FAILED")


def end_run(tracking: Mapping[str, Any], job: Job, status: str) -> None:
    """Close a job's run in MLflow if it is still open."""
    from clap.tracking.store import open_store, resolve_uri
    from clap.tracking.tracker import recorded_run

    run_id = recorded_run(job.folder, tracking["uri"])
    if not run_id:
        return
    try:
        client = open_store(resolve_uri(tracking["uri"]))
        if client.get_run(run_id).info.status == "RUNNING":
            if job.error:
                client.set_tag(run_id, "error", job.error)
            client.set_terminated(run_id, status)
    except Exception as error:  # MLflow stops no sweep
        log.warning("the run of %s stays open in MLflow: %s", job.name, one_line(error))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

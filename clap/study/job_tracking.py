"""The MLflow runs of a sweep's jobs: closed after a kill, failed with their reason, deleted with their folder."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clap.config.launch import format_error
from clap.study.job import Job, job_tags
from clap.study.result_config import has_checkpoint
from clap.tracking.store import open_store, resolve_uri
from clap.tracking.tracker import Tracker, recorded_run

log = logging.getLogger(__name__)


def delete_lost_runs(tracking: Mapping[str, Any], folder: Path) -> None:
    """Delete runs of this job that its folder knows nothing of: it was deleted, or a kill came before it was told."""
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
    if recorded_run(job.folder, tracking["uri"]):
        end_run(tracking, job, "FAILED")
        return
    name, tags = job_tags()
    tags |= {"role": "train", "error": job.error}
    with contextlib.suppress(ValueError, OSError):  # what is wrong with the store may be why the job failed
        Tracker(**tracking, run_name=name, run_dir=job.folder, tags=tags).finish("FAILED")


def end_run(tracking: Mapping[str, Any], job: Job, status: str) -> None:
    """Close a job's run in MLflow if it is still open."""
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
        log.warning("the run of %s stays open in MLflow: %s", job.name, format_error(error))

"""The MLflow runs of the jobs of a sweep: closes killed runs, records failures, deletes runs without a folder."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clap.config.launch import format_error
from clap.study.job import Job, job_tags
from clap.study.result_config import has_checkpoint
from clap.study.run_description import describe_run
from clap.tracking.description import NOTE, describe_error
from clap.tracking.store import open_store, resolve_uri
from clap.tracking.tracker import Tracker, recorded_run

log = logging.getLogger(__name__)


def delete_lost_runs(tracking: Mapping[str, Any], folder: Path) -> None:
    """Delete MLflow runs of this job that its folder does not record: after deleting the folder, or an early kill."""
    _, tags = job_tags()
    parent, uri = tags.get("mlflow.parentRunId"), resolve_uri(tracking["uri"])
    if not uri or not parent or recorded_run(folder, uri) or has_checkpoint(folder):
        return
    client = open_store(uri)
    experiment = client.get_run(parent).info.experiment_id
    own_runs = f"tags.`mlflow.parentRunId` = '{parent}' and tags.folder = '{folder.name}'"
    for run in client.search_runs([experiment], own_runs):
        client.delete_run(run.info.run_id)


def track_failure(tracking: Mapping[str, Any], job: Job) -> None:
    """Record a job that failed outside of its tracker as a failed run in MLflow, also if it has no run yet."""
    if recorded_run(job.folder, tracking["uri"]):
        end_run(tracking, job, "FAILED")
        return
    with contextlib.suppress(ValueError, OSError):  # the store may be the reason of the failure
        run = describe_run(job.config)
        tags = run.tags | {"error": job.error, NOTE: describe_error(run.tags[NOTE], job.error)}
        Tracker(**tracking, run_name=run.name, run_dir=job.folder, tags=tags).finish("FAILED")


def end_run(tracking: Mapping[str, Any], job: Job, status: str) -> None:
    """Close the MLflow run of a job if it is open."""
    run_id = recorded_run(job.folder, tracking["uri"])
    if not run_id:
        return
    try:
        client = open_store(resolve_uri(tracking["uri"]))
        run = client.get_run(run_id)
        if run.info.status == "RUNNING":
            if job.error:
                client.set_tag(run_id, "error", job.error)
                client.set_tag(run_id, NOTE, describe_error(run.data.tags.get(NOTE, ""), job.error))
            client.set_terminated(run_id, status)
    except Exception as error:  # an MLflow error must not stop the sweep
        log.warning("the run of %s stays open in MLflow: %s", job.name, format_error(error))

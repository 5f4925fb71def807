"""Uploads to MLflow what a run could not send: `python -m clap upload RUN_DIR`.

mlflow.json in the run folder records everything that the store should have except the metrics, which are in
metrics.jsonl. Data in the store is not sent again, so that an upload can be repeated and resumed.
"""

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clap.atomic import read_json, read_json_lines, write_json
from clap.run_folder import HISTORY, LOCK, OWNER, RECORD, SWEEP_FILE, find_outside, is_running
from clap.tracking.store import (
    Metric,
    MlflowClient,
    MlflowException,
    RunTag,
    error_summary,
    find_or_create_experiment,
    find_recorded_uri,
    is_outage,
    open_store,
    resolve_uri,
    send_artifact,
    send_dataset,
    send_params,
    send_view,
)

log = logging.getLogger(__name__)
PARENT = "mlflow.parentRunId"


def upload(folder: Path, *, uri: str | None = None) -> Iterator[str]:
    """Send the missing data of a run, and of its jobs if it is a sweep; yields one line per run.

    Args:
        uri: target store; defaults to the one that the run was logged to.

    Raises:
        FileNotFoundError: the folder does not exist or has no run.
        ValueError: no store is known, the run was deleted in it, or an artifact is outside of the run folder.
        ConnectionError: the store cannot be reached; the next upload sends the rest.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; give the folder of a run or of a sweep")
    record = read_json(folder / RECORD)
    if not record:
        raise FileNotFoundError(f"{folder} has no {RECORD}; give the folder of a run or of a sweep")
    uri = resolve_uri(uri or find_recorded_uri(folder, record))
    if uri is None:
        raise ValueError(f"{folder} was run with tracking.uri=null; set a store with --uri")
    client = open_store(uri)
    for run_dir in [folder, *sorted(path.parent for path in folder.glob(f"*/{RECORD}"))]:
        if (run_dir / LOCK).exists() and is_running(run_dir):
            yield f"{run_dir} is running; skipped"
            continue
        with outage_as_connection_error(uri, run_dir):
            yield f"{run_dir}: {send_run(client, run_dir, uri=uri)}"


@contextmanager
def outage_as_connection_error(uri: str, run_dir: Path) -> Iterator[None]:
    """Convert the various errors of an unreachable store to a ConnectionError."""
    try:
        yield
    except Exception as error:  # of MLflow, SQLAlchemy or requests
        if not is_outage(error):
            raise
        raise ConnectionError(
            f"MLflow at {uri} stopped answering ({error_summary(error)}); nothing is lost, upload {run_dir} again"
        ) from error


def send_run(client: MlflowClient, run_dir: Path, *, uri: str) -> str:
    """Send the missing data of one run; returns a summary. Calls that MLflow refuses are warnings, as in training."""
    record, metrics = read_json(run_dir / RECORD), read_metrics(run_dir / HISTORY)
    check_artifacts(run_dir, [path for path, _ in record.get("artifacts", [])])
    times = [metric.timestamp for metric in metrics] or [round(1000 * (run_dir / RECORD).stat().st_mtime)]
    before = record["run_id"]
    owner = read_json(run_dir / OWNER).get("id")
    if owner and record.get("owner", owner) not in (owner, None):
        raise ValueError(f"{run_dir}: {RECORD} and {OWNER} are of two runs; restore the files of one of them")
    link_to_parent(record, run_dir, uri=uri)
    if not has_run(client, before, uri=uri):
        create_run(client, record, run_dir, uri=uri, start_time=min(times))
    run_id = record["run_id"]
    missing = find_missing_metrics(client, run_id, metrics)
    status = "KILLED" if record["status"] == "RUNNING" else record["status"]  # a killed run could not update it
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("parameters", partial(send_params, client, run_id, record.get("params", {}))),
        ("tags", partial(client.log_batch, run_id, tags=[RunTag(*item) for item in record["tags"].items()])),
        *((f"dataset {d['name']}", partial(send_dataset, client, run_id, **d)) for d in record.get("datasets", [])),
        ("metrics", partial(client.log_batch, run_id, metrics=missing)),
        *(
            (f"artifact {path}", partial(send_artifact, client, run_id, run_dir / path, into))
            for path, into in record.get("artifacts", [])
        ),
        *(("view", partial(send_view, client, run_id, **view)) for view in [record.get("view")] if view),
    ]
    if client.get_run(run_id).info.status != status:
        calls.append(("status", partial(client.set_terminated, run_id, status=status, end_time=max(times))))
    for what, call in calls:
        try:
            call()
        except (MlflowException, OSError) as error:
            if is_outage(error):
                raise
            log.warning("MLflow refuses %s of %s: %s", what, run_dir, error_summary(error))
    name = f"run {run_id}" if run_id == before else f"new run {run_id}" + (f", previously {before}" if before else "")
    return f"{name}, {status}, in {uri}; sent {len(missing)} of {len(metrics)} metric values, the others were there"


def check_artifacts(run_dir: Path, paths: Sequence[str]) -> None:
    """Check that artifacts, the files in them and what links point to are inside the run folder.

    Raises:
        ValueError: one is outside; mlflow.json may have been written by someone else.
    """
    for path in paths:
        if (file := find_outside(run_dir, run_dir / path)) is not None:
            raise ValueError(
                f"{run_dir / RECORD} names the artifact {path}, but {file} is outside of {run_dir}; it is not "
                "sent; remove it from there"
            )


def link_to_parent(record: dict[str, Any], run_dir: Path, *, uri: str) -> None:
    """Set the parent of a job to the current run of its sweep in this store."""
    sweep_dir = run_dir.parent
    parent = read_json(sweep_dir / RECORD) if (sweep_dir / SWEEP_FILE).exists() else {}
    if parent.get("uri") == uri and record["tags"].get(PARENT, parent["run_id"]) != parent["run_id"]:
        record["tags"][PARENT] = parent["run_id"]
        write_json(run_dir / RECORD, record)


def has_run(client: MlflowClient, run_id: str | None, *, uri: str) -> bool:
    """Whether the store has a run.

    Raises:
        ValueError: the run is deleted.
    """
    if run_id is None:
        return False
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(
            f"run {run_id} was deleted in {uri}; to restore it: "
            f"`MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow runs restore --run-id {run_id}`"
        )
    return True


def create_run(client: MlflowClient, record: dict[str, Any], run_dir: Path, *, uri: str, start_time: int) -> None:
    """Create a run in the store and link the run folder to it."""
    experiment_id = find_or_create_experiment(client, record["experiment"], uri=uri)
    run = client.create_run(experiment_id, start_time=start_time, tags=record["tags"], run_name=record["run_name"])
    record |= {"uri": uri, "run_id": run.info.run_id}
    write_json(run_dir / RECORD, record)
    if sweep := read_json(run_dir / SWEEP_FILE):
        write_json(run_dir / SWEEP_FILE, {**sweep, "run_id": run.info.run_id})


def read_metrics(path: Path) -> list[Metric]:
    """Every value of metrics.jsonl, with its original timestamp."""
    entries = read_json_lines(path) if path.exists() else ()
    return [
        Metric(name, value, int(1000 * entry["time"]), entry["step"])
        for entry in entries
        for name, value in entry["metrics"].items()
    ]


def find_missing_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
    """Metric values that the store lacks; some stores would keep duplicates."""
    names = client.get_run(run_id).data.metrics.keys() & {metric.key for metric in metrics}
    points = [point for name in names for point in client.get_metric_history(run_id, name)]
    known = {(point.key, point.timestamp, point.step) for point in points}
    return [metric for metric in metrics if (metric.key, metric.timestamp, metric.step) not in known]

"""The MLflow store of tracking.uri, a SQLite file or a server: opening, writing and error messages.

Other modules import MLflow from here, because environment variables must be set before its import.
"""

import json
import logging
import os
import shlex
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

# Read by MLflow at import or at a request; values set by the user take precedence. With MLflow's default retries an
# unreachable server blocks for 246 s; with these, a refused connection takes under a second and a server that never
# answers 5 s, in a run 10 s.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for variable, default in ENVIRONMENT.items():
    os.environ.setdefault(variable, default)
os.environ.pop("MLFLOW_ACTIVE_MODEL_ID", None)  # metrics of every run would be logged to this model
logging.getLogger("alembic").setLevel(logging.WARNING)  # it lists its plugins
# Both log for every request what the tracker logs once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)

from alembic.util import CommandError  # noqa: E402 (the environment comes first)
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag  # noqa: E402, F401
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: E402, F401
from mlflow.tracking.context.registry import resolve_tags  # noqa: E402, F401

from clap.config.build import update_target  # noqa: E402
from clap.config.secrets import PASSWORD, USERNAME, hide_secrets, move_server_login  # noqa: E402
from clap.tracking.description import NOTE  # noqa: E402
from clap.tracking.relocate import artifact_root, relocate_artifacts  # noqa: E402
from clap.tracking.view import (  # noqa: E402
    MEANS,
    SUMMARY,
    VIEW_TAG,
    WORKFLOW,
    has_repeats,
    list_pages,
    make_view,
    pack_view,
    summarize,
)

logger = logging.getLogger(__name__)

DEFAULT_STORE = "outputs/mlflow.db"
STORE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
OUTAGE_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
MAX_TAG_LENGTH = 5000
MAX_DIGEST_LENGTH = 36


def resolve_uri(uri: str | None) -> str | None:
    """Absolute `sqlite:///` URI of a local path, or the address of a server; None if tracking is off.

    User and password of an address are moved to the environment, from which MLflow reads them.
    """
    if uri is None or uri.lower() == "none":
        return None
    if uri.startswith(("http://", "https://")):
        return move_server_login(uri)
    path = (uri or DEFAULT_STORE).removeprefix("sqlite:///")
    if "://" in path or Path(path).suffix not in STORE_SUFFIXES:
        raise ValueError(
            f"tracking.uri={hide_secrets(uri)} is neither a SQLite file ({', '.join(STORE_SUFFIXES)}) nor a server; "
            f"set it to a path like {DEFAULT_STORE}, to http://HOST:PORT, or to null to turn MLflow off"
        )
    return f"sqlite:///{Path(path).expanduser().resolve().as_posix()}"


def open_store(uri: str) -> MlflowClient:
    """Client of a store, after a test request; a SQLite file is created if it does not exist.

    The store is also the model registry, whatever MLFLOW_REGISTRY_URI names. The artifacts of a moved SQLite file are
    those next to it.
    """
    try:
        if uri.startswith("sqlite:"):
            path = store_path(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):  # concurrent creation of the tables corrupts them
                if not path.exists():
                    create_store(path)
                client = make_client(uri)
                relocate_artifacts(path)
                return client
        with suppress(requests.exceptions.SSLError):  # MLflow may trust other certificates
            requests.get(
                f"{uri}/health", timeout=float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
            )  # MLflow retries once
        client = make_client(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, sqlite3.Error, CommandError, OSError) as error:
        if uri.startswith("sqlite:"):
            problem = "cannot be opened as an MLflow store"
            upgrade = f"mlflow db upgrade {shlex.quote(uri)}"
            advice = f"move the file, run `{upgrade}` if an older MLflow wrote it, or set another path"
        else:
            problem = "does not answer as an MLflow server"
            advice = f"start it with `mlflow server --port PORT`, or leave tracking.uri at {DEFAULT_STORE}"
            if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
                problem, advice = "refuses the login", f"set {USERNAME} and {PASSWORD}, or MLFLOW_TRACKING_TOKEN"
        raise ConnectionError(f"tracking.uri={uri} {problem} ({error_summary(error)}); {advice}") from error
    return client


def make_client(uri: str) -> MlflowClient:
    return MlflowClient(uri, registry_uri=uri)


def create_store(path: Path) -> None:
    """Create a SQLite store atomically: MLflow cannot open one with incomplete tables."""
    folder = path.with_name(f"{path.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make_client(f"sqlite:///{(folder / path.name).as_posix()}")
    with closing(sqlite3.connect(folder / path.name)) as connection, connection:
        # MLflow's own experiment, Default, would keep its artifacts in the working directory.
        connection.execute("UPDATE experiments SET artifact_location = ?", (str(artifact_root(path)),))
    (folder / path.name).replace(path)
    shutil.rmtree(folder, ignore_errors=True)


def store_path(uri: str) -> Path:
    """The file behind a `sqlite:///` URI."""
    return Path(uri.removeprefix("sqlite:///"))


def holds_run(uri: str, run_id: str) -> bool:
    """Whether a store has a run; False if the store does not exist or does not answer."""
    if uri.startswith("sqlite:") and not store_path(uri).is_file():
        return False
    try:
        open_store(uri).get_run(run_id)
    except (MlflowException, OSError):
        return False
    return True


def find_recorded_uri(run_dir: Path, record: Mapping[str, Any]) -> str | None:
    """The store of a run by its mlflow.json; of a run folder that was moved or copied with its store, the new place.

    Raises:
        FileNotFoundError: the store is gone.
    """
    uri, run_id = record.get("uri"), record.get("run_id")
    if uri is None or run_id is None or not uri.startswith("sqlite:"):
        return uri
    above = [folder / store_path(uri).name for folder in Path(run_dir).resolve().parents]
    found = [f"sqlite:///{path.as_posix()}" for path in above if path.is_file()]
    uri = next((other for other in found if other == uri or holds_run(other, run_id)), uri)
    if not store_path(uri).parent.is_dir():
        raise FileNotFoundError(f"{run_dir} was logged to {store_path(uri)}, which does not exist; set --uri")
    return uri


def find_or_create_experiment(client: MlflowClient, name: str, *, uri: str) -> str:
    """Id of an experiment; a new one in a SQLite store keeps its artifacts in `mlartifacts` next to the file."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = str(artifact_root(store_path(uri))) if uri.startswith("sqlite:") else None
        try:
            return client.create_experiment(name, artifact_location=folder)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process has created it
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"tracking.experiment={name} was deleted in {uri}; set another name, or restore it with "
            f"`MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return found.experiment_id


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters; MLflow parameters are immutable, so a changed value becomes the tag `resumed.<name>`.

    A later resume updates the tag, also to the value of the parameter. The parameter `resume` is that of the start.
    """
    run = client.get_run(run_id).data
    known = run.params
    both = sorted((known.keys() & params.keys()) - {"resume"})
    changed = [name for name in both if update_target(known[name]) != update_target(params[name])]
    tagged = [name for name in both if name in changed or f"resumed.{name}" in run.tags]
    if changed:
        logger.warning("Run %s resumes with changed parameters, logged as tags: %s", run_id, ", ".join(changed))
    client.log_batch(
        run_id,
        params=[Param(name, value) for name, value in params.items() if name not in known],
        tags=[RunTag(f"resumed.{name}", params[name][:MAX_TAG_LENGTH]) for name in tagged],
    )


def send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    """Copy a file or a folder to the artifacts of a run, below `folder`."""
    if client.tracking_uri.startswith("sqlite:"):  # a process with another mount of the store may have moved them
        relocate_artifacts(store_path(client.tracking_uri))
    client.log_artifact(run_id, str(path), folder)


def send_dataset(
    client: MlflowClient, run_id: str, *, name: str, digest: str, split: str, source: str, num_clips: int | None
) -> None:
    """Log a dataset as an input of a run; idempotent."""
    profile = None if num_clips is None else json.dumps({"num_clips": num_clips})
    source = json.dumps({"uri": source})
    dataset = Dataset(name, digest[:MAX_DIGEST_LENGTH], source_type="local", source=source, profile=profile)
    client.log_inputs(run_id, [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", split)])])


def send_view(client: MlflowClient, run_id: str, *, summary: str = "", **view: Any) -> None:
    """Store the UI views of a sweep, and describe its experiment if nobody else has.

    Args:
        summary: of the results, for the description.
        view: arguments of `make_view`.
    """
    info = client.get_run(run_id).info
    means = has_repeats(view["swept"], view.get("configurations", ()))
    views = {run_id: info.run_name} | ({f"{run_id}{MEANS}": f"{info.run_name}, means"} if means else {})
    for key, name in views.items():
        packed = pack_view(name, make_view(run_id, **view, means=key != run_id), created=info.start_time)
        client.set_experiment_tag(info.experiment_id, f"{VIEW_TAG}{key}", packed)
    if client.get_experiment(info.experiment_id).tags.get(NOTE, SUMMARY).startswith(SUMMARY):
        pages = list_pages("", info.experiment_id, run_id, means=means)
        pages["leaderboard"] = f"#/experiments/{info.experiment_id}/runs/{run_id}?{WORKFLOW}"
        note = summarize(info.run_name, pages, summary)
        client.set_experiment_tag(info.experiment_id, NOTE, note[:MAX_TAG_LENGTH])


def is_outage(error: Exception) -> bool:
    """Whether a call may succeed later: the store is unreachable, overloaded or locked."""
    if isinstance(error, MlflowException):
        return error.error_code in OUTAGE_CODES
    return isinstance(error, (requests.RequestException, SQLAlchemyError, sqlite3.Error))


def error_summary(error: Exception) -> str:
    """Cause in the first line of an error; messages of MLflow and urllib3 are very long."""
    lines = str(error).splitlines() or [type(error).__name__]
    _, _, cause = lines[0].partition("(Caused by ")
    return hide_secrets(cause.removesuffix(")") or lines[0])[:200]

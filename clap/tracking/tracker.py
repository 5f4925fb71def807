"""A run in MLflow.

It is written through `MlflowClient`, not through MLflow's global state, so that a process can have several runs.
MLflow never stops a training: an unreachable store is an error before the first step and a warning after it. Pending
calls are sent when the store is reachable again, and metrics.jsonl in the run folder always has every metric.
"""

import logging
import os
import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clap.atomic import read_json, write_json
from clap.config.secrets import hide_secrets
from clap.run_folder import HISTORY, OWNER, RECORD, append_history
from clap.tracking.description import NOTE, describe_error
from clap.tracking.store import (
    MAX_TAG_LENGTH,
    Metric,
    MlflowClient,
    MlflowException,
    RunTag,
    SystemMetricsMonitor,
    error_summary,
    find_or_create_experiment,
    holds_run,
    is_outage,
    open_store,
    resolve_tags,
    resolve_uri,
    send_artifact,
    send_dataset,
    send_params,
    send_view,
)
from clap.tracking.view import WORKFLOW, has_repeats, list_pages

logger = logging.getLogger(__name__)

STATUSES = ("FINISHED", "FAILED", "KILLED")
METRIC_NAME = re.compile(r"[\w\-. :]+(/[\w\-. :]+)*", re.ASCII)
MAX_PARAM_LENGTH = 6000  # characters; MLflow refuses longer ones
FLUSH_SIZE = 500  # metrics; a call per metric costs 10 ms, a batch 0.2 ms per metric
FLUSH_SECONDS = 10.0
RETRY_SECONDS = 300.0  # an attempt blocks for 10 s if the server hangs: 3 % of the time


class Tracker:
    """One MLflow run: parameters, tags, buffered metrics, artifacts.

    Args:
        uri: `outputs/mlflow.db` or another SQLite file (with its artifacts in `mlartifacts` next to it), or the address
            of an MLflow server; None or "none" turns MLflow off, metrics.jsonl is still written.
        experiment: MLflow experiment, created if it does not exist.
        run_name: shown by MLflow.
        tags: set when the run is created.
        run_id: run to resume; None starts a new one.
        run_dir: folder of the run, with metrics.jsonl and mlflow.json, the record of everything sent except metrics.

    Raises:
        ValueError: uri is invalid, the experiment was deleted, or run_id is not in the store.
        ConnectionError: the store cannot be reached.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        *,
        run_name: str,
        tags: Mapping[str, object] | None = None,
        run_id: str | None = None,
        run_dir: Path,
    ):
        self.uri = resolve_uri(uri)
        self.run_id, self.run_name = run_id, run_name
        self.history_path = Path(run_dir) / HISTORY
        self.history_path.parent.mkdir(parents=True, exist_ok=True)
        self.experiment_id: str | None = None
        self._record_path = Path(run_dir) / RECORD
        self._record = {"uri": self.uri, "experiment": experiment, "run_name": run_name, "status": "RUNNING"}
        self._record |= {"owner": read_json(Path(run_dir) / OWNER).get("id"), "tags": to_tags(tags or {})}
        self._resumed = self.run_id is not None
        self._metrics: list[Metric] = []
        self._last_flush = time.monotonic()
        self._queue: deque[tuple[str, Callable[[MlflowClient], object]]] = deque()
        self._retry_at = 0.0
        self._warned: set[str] = set()
        self._monitor: SystemMetricsMonitor | None = None
        self._client = None if self.uri is None else open_store(self.uri)
        if self._client is not None:
            self._start_run(experiment, run_name)
        self._update_record("run_id", self.run_id)
        if self._resumed:
            self.set_tags(tags or {})

    def _start_run(self, experiment: str, run_name: str) -> None:
        if self.run_id is None:
            self.experiment_id = find_or_create_experiment(self._client, experiment, uri=self.uri)
            self._record["tags"] = tags = {**to_tags(resolve_tags()), **self._record["tags"]}
            self.run_id = self._client.create_run(self.experiment_id, tags=tags, run_name=run_name).info.run_id
            return
        try:
            run = self._client.get_run(self.run_id)
            self.experiment_id = run.info.experiment_id
            if "error" in run.data.tags:
                self._client.delete_tag(self.run_id, "error")  # of the previous attempt
            self._client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise ValueError(
                f"run_id={self.run_id} cannot be resumed in tracking.uri={self.uri} ({error_summary(error)}); "
                "set tracking.uri to the store that holds the run, or start a new run"
            ) from error

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """Close the run, unless the body has: KILLED after Ctrl-C, FAILED after any other exception."""
        if self._record["status"] != "RUNNING":
            return
        if error is None:
            self.finish("FINISHED")
            return
        with suppress(OSError):  # a full disk; `error` is the first one that it caused
            text = f"{kind.__name__}: {error}"
            self.set_tags({"error": text, NOTE: describe_error(self._record["tags"].get(NOTE, ""), text)})
            self.finish("KILLED" if kind is KeyboardInterrupt else "FAILED")

    @property
    def url_hint(self) -> str:
        """How to view the run: the command that opens the UI, or the address of the run on its server."""
        if self.uri is None:
            return "off (tracking.uri=null)"
        if self.uri.startswith("sqlite:"):
            return shlex.join(["mlflow", "ui", "--backend-store-uri", self.uri])
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{WORKFLOW}"

    @property
    def view_hint(self) -> str:
        """How to open the views of `log_view`: addresses of the table, the charts and the means, one per line."""
        if self.uri is None:
            return f"MLflow is {self.url_hint}"
        local, view = self.uri.startswith("sqlite:"), self._record["view"]
        server = "http://127.0.0.1:5000/" if local else f"{self.uri}/"
        means = has_repeats(view["swept"], view.get("configurations", ()))
        pages = list_pages(server, self.experiment_id, self.run_id, means=means)
        return "\n".join([*([self.url_hint] if local else []), *(f"{page}: {pages[page]}" for page in pages)])

    def log_view(self, **view: Any) -> None:
        """Store UI views of the child runs: the arguments of `make_view` but the id of the run, and `summary`."""
        self._update_record("view", view)
        self._send("view", lambda client: send_view(client, self.run_id, **view))

    def log_params(self, config: Mapping) -> None:
        """Log a nested config under dotted keys; values that a resumed run changes become tags."""
        params = to_params(config)
        self._update_record("params", self._record.get("params", {}) | params)
        self._send("parameters", lambda client: send_params(client, self.run_id, params))

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values of None are skipped."""
        tags = to_tags(tags)
        self._update_record("tags", self._record["tags"] | tags)
        items = [RunTag(name, value) for name, value in tags.items()]
        self._send("tags", lambda client: client.log_batch(self.run_id, tags=items))

    def log_dataset(
        self, name: str, *, digest: str, split: str, source: str = "", num_clips: int | None = None
    ) -> None:
        """Log a dataset as an input of the run.

        Args:
            digest: fingerprint of the clips and captions; MLflow keeps 36 characters.
            source: folder or address of the data.
        """
        described = {"name": name, "digest": digest, "split": split, "num_clips": num_clips}
        described["source"] = hide_secrets(source)
        self._update_record("datasets", [*self._record.get("datasets", []), described])
        self._send(f"dataset {name}", lambda client: send_dataset(client, self.run_id, **described))

    def log_inputs(self, config: Mapping, datasets: Iterable[Any]) -> None:
        """Log a config, and ClapDatasets as the inputs of the run."""
        self.log_params(config)
        for dataset in datasets:
            num_clips = len(dataset.clips)
            self.log_dataset(dataset.name, digest=dataset.digest, split=dataset.kind, num_clips=num_clips)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append metrics to metrics.jsonl, and send them to MLflow with the next flush. nan and inf are allowed."""
        if refused := [name for name in metrics if not METRIC_NAME.fullmatch(name)]:
            raise ValueError(
                f"metric name {refused[0]!r} is refused by MLflow; use letters, digits and _ - . : with single slashes "
                "between parts, as in val/clotho/text_to_audio/recall_at_1"
            )
        entry = append_history(self.history_path.parent, metrics, step=step)
        timestamp = int(1000 * entry["time"])
        self._metrics += [Metric(name, value, timestamp, step) for name, value in entry["metrics"].items()]
        if len(self._metrics) >= FLUSH_SIZE or time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send buffered metrics and calls that an outage has delayed."""
        self._last_flush = time.monotonic()
        metrics, self._metrics = self._metrics, []
        if metrics and self._client is not None:
            self._queue.append(("metrics", lambda client: client.log_batch(self.run_id, metrics=metrics)))
        self._send_queue()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder to the artifacts of the run, below `folder`."""
        inside = os.path.relpath(path, self._record_path.parent)
        self._update_record("artifacts", [*self._record.get("artifacts", []), [inside, folder]])
        self._send(f"artifact {path}", lambda client: send_artifact(client, self.run_id, path, folder))

    def log_artifacts(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files and folders in `folder` to the artifacts of the run."""
        for name in names:
            self.log_artifact(folder / name)

    def start_system_metrics(self) -> None:
        """Log CPU, disk, network and GPU usage every ten seconds from a daemon thread."""
        if self._client is None or self._monitor is not None:
            return
        try:
            monitor = SystemMetricsMonitor(self.run_id, resume_logging=self._resumed, tracking_uri=self.uri)
        except Exception as error:  # psutil and the GPU libraries raise many types
            self._warn_once("system metrics", f"System metrics are not logged to MLflow: {error_summary(error)}")
            return
        monitor.start()
        self._monitor = monitor

    def finish(self, status: str = "FINISHED") -> None:
        """Send buffered metrics and close the run.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        if status not in STATUSES:
            raise ValueError(f"status={status!r} is not one of {', '.join(STATUSES)}")
        self._update_record("status", status)
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._retry_at = 0.0
        self.flush()
        self._send("status", lambda client: client.set_terminated(self.run_id, status=status))
        if self._queue:
            folder = shlex.quote(str(self.history_path.parent))
            logger.info("MLflow is still unreachable; to send the rest later: python -m clap upload %s", folder)

    def _update_record(self, key: str, value: object) -> None:
        """Update mlflow.json in the run folder, which `python -m clap upload` reads."""
        self._record[key] = value
        write_json(self._record_path, self._record)

    def _send(self, what: str, operation: Callable[[MlflowClient], object]) -> None:
        """Append a call to the queue, and send the queue."""
        if self._client is not None:
            self._queue.append((what, operation))
            self._send_queue()

    def _send_queue(self) -> None:
        """Send queued calls until the store fails; after an outage, wait RETRY_SECONDS before the next attempt."""
        while self._queue and time.monotonic() >= self._retry_at:
            what, operation = self._queue[0]
            try:
                operation(self._client)
            except Exception as error:  # whatever MLflow raises, the training continues
                if is_outage(error):
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                    message = (
                        f"MLflow at tracking.uri={self.uri} stopped answering ({error_summary(error)}); the run "
                        f"continues and retries every {RETRY_SECONDS:g} s, its metrics are in {self.history_path}"
                    )
                    self._warn_once("outage", message)
                    return
                self._warn_once(what, f"MLflow refuses {what} of run {self.run_id}: {error_summary(error)}")
            self._queue.popleft()

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message)


def to_params(config: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested mapping -> {dotted key: text}, without passwords, truncated to MLflow's limit."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= to_params(value, prefix=f"{name}.")
        else:
            flat[name] = hide_secrets(str(value))[:MAX_PARAM_LENGTH]
    return flat


def to_tags(values: Mapping[str, object]) -> dict[str, str]:
    """Tags as text, without passwords, truncated to MLflow's limit, without those that are None."""
    return {name: hide_secrets(str(value))[:MAX_TAG_LENGTH] for name, value in values.items() if value is not None}


def check_store(uri: str | None) -> None:
    """Raise ConnectionError or ValueError if the store of tracking.uri cannot be opened; None: no tracking."""
    if (resolved := resolve_uri(uri)) is not None:
        open_store(resolved)


def recorded_run(run_dir: Path, uri: str | None) -> str | None:
    """Id of the run of a folder in this store, whichever address of the store was recorded; None if it is not there."""
    record, uri = read_json(Path(run_dir) / RECORD), resolve_uri(uri)
    run_id = record.get("run_id")
    if uri is None or run_id is None:
        return None
    return run_id if record["uri"] == uri or holds_run(uri, run_id) else None

"""Uploads of lost runs to real SQLite stores and a real server."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from clap.__main__ import main
from clap.atomic import read_json_lines
from clap.tracking.tracker import Tracker
from clap.tracking.upload import upload
from clap.tracking.view import make_view, pack_view

DATASET = {"name": "synthetic", "digest": "0" * 16, "split": "train", "num_clips": 8}


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a store shared by the tests of this module."""
    return str(shutil.copy(empty_store, tmp_path_factory.mktemp("store")))


def start_run(uri: str | None, run_dir: Path, **settings) -> Tracker:
    tracker = Tracker(uri, "clap", run_name="nano-s0", run_dir=run_dir, **settings)
    tracker.log_params({"seed": 0, "optimizer": {"lr": 1e-3}})
    tracker.log_dataset(**DATASET)
    return tracker


def log_steps(tracker: Tracker) -> None:
    """Log what a training logs after its first steps."""
    for step in range(4):
        tracker.log_metrics({"train/loss": 1.0 / (step + 1), "train/logit_scale": float("nan")}, step)
        tracker.flush()
    tracker.set_tags({"late": "yes"})
    plots = tracker.history_path.parent / "plots"
    plots.mkdir(exist_ok=True)
    (plots / "loss.png").write_bytes(b"png")
    tracker.log_artifact(plots)


def lose_store(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every later call of the tracker fail like one to an unreachable server."""

    def fail(*args, **kwargs):
        raise MlflowException("connection refused")

    for name in ("log_batch", "log_inputs", "log_artifact", "set_terminated", "get_run"):
        monkeypatch.setattr(tracker._client, name, fail)


def read_record(run_dir: Path) -> dict:
    return json.loads((run_dir / "mlflow.json").read_text())


def read_store(run_dir: Path) -> dict:
    """All data of a run in the store."""
    record = read_record(run_dir)
    client = MlflowClient(record["uri"])
    run = client.get_run(record["run_id"])
    history = {
        name: [
            (point.step, point.timestamp, repr(point.value))
            for point in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    inputs = [(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs]
    artifacts = [file.path for file in client.list_artifacts(run.info.run_id, "plots")]
    times = (run.info.start_time, run.info.end_time)
    return {
        "params": run.data.params,
        "tags": run.data.tags,
        "history": history,
        "inputs": inputs,
        "artifacts": artifacts,
        "status": run.info.status,
        "times": times,
    }


def read_expected_history(run_dir: Path) -> dict:
    """metrics.jsonl in the format of `read_store`."""
    history: dict[str, list] = {}
    for entry in read_json_lines(run_dir / "metrics.jsonl"):
        for name, value in entry["metrics"].items():
            history.setdefault(name, []).append((entry["step"], int(1000 * entry["time"]), repr(value)))
    return history


def test_lost_run_is_sent_completely(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = start_run(store, tmp_path)
    lose_store(tracker, monkeypatch)
    log_steps(tracker)
    tracker.finish()
    assert read_store(tmp_path)["status"] == "RUNNING"
    list(upload(tmp_path))
    found = read_store(tmp_path)
    assert found["history"] == read_expected_history(tmp_path)
    assert (found["status"], found["tags"]["late"], found["artifacts"]) == ("FINISHED", "yes", ["plots/loss.png"])


@pytest.mark.parametrize("kind", ["absolute", "parent", "link", "link in a folder"])
def test_artifact_outside_of_the_run_folder_is_not_sent(store: str, tmp_path: Path, kind: str):
    run_dir, private = tmp_path / "run", tmp_path / "private"
    start_run(store, run_dir).finish()
    private.write_text("key")
    (run_dir / "plots").mkdir()
    (run_dir / ("link" if kind == "link" else "plots/link")).symlink_to(private)
    names = {"absolute": str(private), "parent": "../private", "link": "link", "link in a folder": "plots"}
    record = read_record(run_dir) | {"artifacts": [[names[kind], None]]}
    (run_dir / "mlflow.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is outside of .*; it is not sent; remove it from there"):
        list(upload(run_dir, uri=store))


def test_end_time_of_a_lost_run_is_its_last_metric(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = start_run(store, tmp_path)
    lose_store(tracker, monkeypatch)
    log_steps(tracker)
    tracker.finish()
    list(upload(tmp_path))
    assert read_store(tmp_path)["times"][1] == read_expected_history(tmp_path)["train/loss"][-1][1]


def test_upload_of_a_complete_run_changes_nothing(store: str, tmp_path: Path):
    tracker = start_run(store, tmp_path)
    log_steps(tracker)
    tracker.finish()
    before, record = read_store(tmp_path), read_record(tmp_path)
    (line,) = upload(tmp_path)
    assert "sent 0 of 8 metric values" in line
    assert (read_store(tmp_path), read_record(tmp_path)) == (before, record)


def test_killed_run_is_sent_as_killed(store: str, tmp_path: Path):
    log_steps(start_run(store, tmp_path))
    list(upload(tmp_path))
    assert read_store(tmp_path)["status"] == "KILLED"


def test_line_truncated_by_a_kill_is_skipped(store: str, tmp_path: Path):
    log_steps(start_run(store, tmp_path))
    expected = read_expected_history(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    list(upload(tmp_path))
    assert read_store(tmp_path)["history"] == expected


def test_run_without_tracking_becomes_a_new_run(store: str, tmp_path: Path):
    tracker = start_run(None, tmp_path, tags={"role": "train"})
    log_steps(tracker)
    tracker.finish("FAILED")
    (line,) = upload(tmp_path, uri=store)
    found = read_store(tmp_path)
    assert f"new run {read_record(tmp_path)['run_id']}, FAILED" in line
    assert found["params"] == {"seed": "0", "optimizer.lr": "0.001"}
    assert found["inputs"] == [("synthetic", "0" * 16)]
    assert (found["status"], found["tags"]["role"], found["tags"]["mlflow.runName"]) == ("FAILED", "train", "nano-s0")
    assert found["history"] == read_expected_history(tmp_path)


def test_next_upload_sends_to_the_same_new_run(store: str, tmp_path: Path):
    log_steps(start_run(None, tmp_path))
    list(upload(tmp_path, uri=store))
    before, record = read_store(tmp_path), read_record(tmp_path)
    (line,) = upload(tmp_path)
    assert "new run" not in line
    assert (read_store(tmp_path), read_record(tmp_path)) == (before, record)


def test_new_run_keeps_its_source_tag(store: str, tmp_path: Path):
    tracker = start_run(store, tmp_path)
    tracker.finish()
    source = read_store(tmp_path)["tags"]["mlflow.source.name"]
    record = read_record(tmp_path) | {"run_id": "0" * 32}
    (tmp_path / "mlflow.json").write_text(
        json.dumps(record | {"tags": record["tags"] | {"mlflow.source.name": "x.py"}})
    )
    (line,) = upload(tmp_path)
    assert f"previously {'0' * 32}" in line and record["tags"]["mlflow.source.name"] == source
    assert read_store(tmp_path)["tags"]["mlflow.source.name"] == "x.py"


def make_sweep(folder: Path, uri: str | None) -> Path:
    """A sweep with one job; returns the job's folder."""
    parent = Tracker(uri, "clap", run_name="ablation", run_dir=folder, tags={"role": "sweep"})
    (folder / "sweep.json").write_text(json.dumps({"study": "ablation", "run_id": parent.run_id, "swept": ["seed"]}))
    job = start_run(uri, folder / "seed=0", tags={"mlflow.parentRunId": parent.run_id or "lost"})
    log_steps(job)
    job.finish()
    parent.log_view(swept=["seed"], metrics=["train/loss"])
    parent.finish()
    return folder / "seed=0"


def test_sweep_is_sent_with_its_jobs(store: str, tmp_path: Path):
    job = make_sweep(tmp_path, None)
    assert len(list(upload(tmp_path, uri=store))) == 2
    parent = read_record(tmp_path)["run_id"]
    assert read_store(job)["tags"]["mlflow.parentRunId"] == parent
    assert json.loads((tmp_path / "sweep.json").read_text()) == {
        "study": "ablation",
        "run_id": parent,
        "swept": ["seed"],
    }


def test_view_of_a_sweep_is_sent_for_its_new_run(store: str, tmp_path: Path):
    make_sweep(tmp_path, None)
    list(upload(tmp_path, uri=store))
    record = read_record(tmp_path)
    tags = MlflowClient(record["uri"]).get_experiment_by_name("clap").tags
    view = make_view(record["run_id"], swept=["seed"], metrics=["train/loss"])
    saved = json.loads(tags[f"mlflow.sharedViewState.{record['run_id']}"])
    assert saved == json.loads(pack_view("ablation", view, created=saved["createdAt"]))
    assert tags["mlflow.note.content"].startswith("**Newest sweep:** ablation ([table](#/experiments/")


def test_job_that_was_sent_alone_is_linked_to_its_parent_later(store: str, tmp_path: Path):
    job = make_sweep(tmp_path, None)
    list(upload(job, uri=store))
    run_id = read_record(job)["run_id"]
    list(upload(tmp_path, uri=store))
    assert read_record(job)["run_id"] == run_id
    assert read_store(job)["tags"]["mlflow.parentRunId"] == read_record(tmp_path)["run_id"]


def test_second_upload_of_a_sweep_changes_nothing(store: str, tmp_path: Path):
    job = make_sweep(tmp_path, store)
    before = [read_store(folder) for folder in (tmp_path, job)]
    list(upload(tmp_path))
    assert [read_store(folder) for folder in (tmp_path, job)] == before


def test_running_job_is_skipped(store: str, tmp_path: Path):
    job = make_sweep(tmp_path, None)
    with FileLock(job / ".lock"):
        lines = list(upload(tmp_path, uri=store))
    assert lines[1] == f"{job} is running; skipped" and read_record(job)["uri"] is None


def test_refused_artifact_is_a_warning(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracker = start_run(None, tmp_path)
    tracker.log_artifact(tmp_path / "absent.png")
    tracker.finish()
    list(upload(tmp_path, uri=store))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "artifact absent.png" in warnings[0] and read_store(tmp_path)["status"] == "FINISHED"


def test_deleted_run_is_named_with_the_restore_command(store: str, tmp_path: Path):
    tracker = start_run(store, tmp_path)
    MlflowClient(tracker.uri).delete_run(tracker.run_id)
    with pytest.raises(ValueError, match=f"run {tracker.run_id} was deleted.*mlflow runs restore"):
        list(upload(tmp_path))


def test_errors_are_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    start_run(None, tmp_path / "run")
    answers = {
        (str(tmp_path / "absent"),): "absent does not exist",
        (str(tmp_path),): "has no mlflow.json",
        (str(tmp_path / "run"),): "tracking.uri=null; set a store with --uri",
        (str(tmp_path / "run"), "--uri", "mlruns"): "neither a SQLite file",
        (str(tmp_path / "run"), "--uri", closed): "does not answer as an MLflow server",
    }
    for arguments, answer in answers.items():
        with pytest.raises(SystemExit, match=answer) as caught:
            main(["upload", *arguments])
        assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


class Server:
    """A real local `mlflow server` that can be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
        }
        command = [sys.executable, "-m", "mlflow", "server", *(word for item in options.items() for word in item)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.address}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "server.db")
    server = Server(folder)
    yield server
    server.kill()


def test_run_is_sent_when_a_lost_server_is_back(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    tracker = start_run(server.address, tmp_path)
    tracker.log_metrics({"train/loss": 2.0}, 0)
    tracker.flush()
    server.kill()
    log_steps(tracker)
    tracker.finish()
    assert f"python -m clap upload {tmp_path}" in caplog.text
    with pytest.raises(ConnectionError, match="does not answer"):
        list(upload(tmp_path))
    server.start()
    assert read_store(tmp_path)["history"] == {"train/loss": read_expected_history(tmp_path)["train/loss"][:1]}
    list(upload(tmp_path))
    found = read_store(tmp_path)
    assert found["history"] == read_expected_history(tmp_path)
    assert (found["status"], found["tags"]["late"], found["artifacts"]) == ("FINISHED", "yes", ["plots/loss.png"])
    list(upload(tmp_path))
    assert read_store(tmp_path) == found


def test_folder_with_the_records_of_two_runs_is_refused(store: str, tmp_path: Path):
    (tmp_path / "run.json").write_text('{"id": "a"}')
    start_run(None, tmp_path).finish()
    (tmp_path / "run.json").write_text('{"id": "b"}')
    with pytest.raises(ValueError, match="mlflow.json and run.json are of two runs"):
        list(upload(tmp_path, uri=store))

"""The store of tracking.uri: files, reachable and unreachable servers, experiments."""

import base64
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clap.tracking.store import find_or_create_experiment, open_store, resolve_uri


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return resolve_uri(str(tmp_path_factory.mktemp("store") / "mlflow.db"))


@pytest.fixture(scope="module")
def client(store: str) -> MlflowClient:
    return open_store(store)


@pytest.fixture
def silent_server():
    """Address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("uri", ["outputs/mlflow.db", "sqlite:///outputs/mlflow.db", ""])
def test_local_uri_becomes_absolute(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(uri) == f"sqlite:///{tmp_path}/outputs/mlflow.db"


@pytest.mark.parametrize("uri", ["localhost:5000", "mlruns", "file:///tmp/mlruns", "ftp://host/mlflow.db"])
def test_unknown_uri_is_refused(uri: str):
    with pytest.raises(ValueError, match=f"tracking.uri={uri}.*outputs/mlflow.db"):
        resolve_uri(uri)


def test_broken_store_names_the_file(tmp_path: Path):
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    with pytest.raises(ConnectionError, match="tracking.uri=sqlite:.*mlflow.db"):
        open_store(resolve_uri(str(tmp_path / "mlflow.db")))


def test_error_of_a_closed_port_names_tracking_uri(closed_address: str):
    with pytest.raises(ConnectionError, match=f"tracking.uri={closed_address}.*mlflow server"):
        open_store(closed_address)


def test_silent_server_times_out_quickly(silent_server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="tracking.uri"):
        open_store(silent_server)
    assert time.monotonic() - start < 7  # two attempts; under 15 with the default of five seconds


def test_login_of_the_address_is_sent_and_a_refusal_is_named(monkeypatch: pytest.MonkeyPatch):
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization"))
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None: ...

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    logins: list[str | None] = []
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        uri = resolve_uri(f"http://me:hunter2@127.0.0.1:{server.server_port}")
        with pytest.raises(ConnectionError, match="refuses the login .*set MLFLOW_TRACKING_USERNAME and") as error:
            open_store(uri)
        server.shutdown()
    assert "hunter2" not in uri + str(error.value)
    assert logins[-1] == f"Basic {base64.b64encode(b'me:hunter2').decode()}"


def test_password_in_an_unknown_uri_is_hidden():
    with pytest.raises(ValueError, match="tracking.uri=postgresql://...@host/db is neither a SQLite file"):
        resolve_uri("postgresql://me:hunter2@host/db")


def test_experiment_created_by_another_process_is_used(
    client: MlflowClient, store: str, monkeypatch: pytest.MonkeyPatch
):
    client.create_experiment("clap")
    lookup, answers = client.get_experiment_by_name, iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, lookup(name)))
    assert find_or_create_experiment(client, "clap", uri=store) == lookup("clap").experiment_id


def test_deleted_experiment_is_named(client: MlflowClient, store: str):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ValueError, match="tracking.experiment=gone was deleted"):
        find_or_create_experiment(client, "gone", uri=store)


def test_telemetry_is_off():
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"

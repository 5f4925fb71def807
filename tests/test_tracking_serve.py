"""Requests to the served model, from Python and over HTTP to the real server."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
import torch
from mlflow.exceptions import MlflowException

from clap.model import Clap
from clap.tracking.register import register
from clap.tracking.serve import ServedClap


@pytest.fixture(scope="module")
def clap(tiny_clap) -> Clap:
    return tiny_clap().eval()


@pytest.fixture(scope="module")
def served(clap: Clap) -> ServedClap:
    return ServedClap(clap)


def encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def assert_rows_close(rows: list, embedding: torch.Tensor) -> None:
    """Assert that lists of floats equal an embedding (rows, embed_dim)."""
    np.testing.assert_allclose(np.array(rows), embedding.cpu().numpy(), rtol=0, atol=1e-6)


def assert_refused(served: ServedClap, rows: list[dict], message: str, **params) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        served.predict(pd.DataFrame(rows), params)
    assert caught.value.get_http_status_code() == 400


def test_text_and_audio_share_a_request(served: ServedClap, clap: Clap, tones: list[Path]):
    rows = [{"audio": encode(tones[3])}, {"text": "a dog barks"}, {"audio": encode(tones[0]), "text": None}]
    answer = served.predict(pd.DataFrame(rows, index=[7, 8, 9]))
    assert list(answer.index) == [7, 8, 9]
    assert_rows_close(answer["embedding"][[7, 9]].tolist(), clap.get_audio_embeddings([tones[3], tones[0]]))
    assert_rows_close([answer["embedding"][8]], clap.get_text_embeddings(["a dog barks"]))


def test_base64_with_line_breaks_is_decoded(served: ServedClap, clap: Clap, tones: list[Path]):
    rows = [{"audio": base64.encodebytes(tones[0].read_bytes()).decode()}]
    assert_rows_close(served.predict(pd.DataFrame(rows))["embedding"].tolist(), clap.get_audio_embeddings([tones[0]]))


def test_scores_are_a_softmax_over_averaged_prompts(served: ServedClap, clap: Clap, tones: list[Path]):
    names, templates = ["rain", "a dog"], ["the sound of {}", "this is {}."]
    rows = pd.DataFrame({"audio": [encode(path) for path in tones]})
    answer = served.predict(rows, {"class_names": names, "templates": templates})
    logits = clap.compute_similarity(clap.get_audio_embeddings(tones), clap.embed_classes(names, templates))
    assert list(answer.columns) == names
    assert_rows_close(answer.to_numpy(), logits.softmax(dim=1))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "rain", "audio": "AAAA"}, "row 1 has both text and audio"),
        ({"text": None}, "row 1 has neither text nor audio"),
        ({"text": "  "}, "row 1: text is blank: '  '; write a text"),
        ({"text": 3}, "row 1: text is 3"),
        ({"audio": "dog.wav"}, "row 1: audio is 'dog.wav', which is not base64"),
        ({"audio": "/usr/share/sounds/rain.wav"}, "not a path or an address"),
        ({"audio": 7.5}, "row 1: audio is '7.5', which is not base64"),
        ({"audio": ""}, "^row 1: empty, 0 bytes"),
        ({"audio": base64.b64encode(b"no recording").decode()}, "^row 1: cannot be decoded .*; damaged, or not WAV"),
    ],
)
def test_bad_row_is_named(served: ServedClap, row: dict, message: str):
    assert_refused(served, [{"text": "a dog barks"}, row], message)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"class_names": ["rain", "dog"]}, "row 0 is text; with class_names every row must be audio"),
        ({"class_names": ["rain"]}, "two or more distinct names"),
        ({"class_names": ["rain", "rain"]}, "distinct names"),
        ({"class_names": ["rain", None]}, "names that are not empty"),
        ({"class_names": ["rain", "dog"], "templates": ["a sound"]}, "each with {} for the class"),
        ({"templates": ["a sound of {}"]}, "require class_names"),
    ],
)
def test_bad_params_are_named(served: ServedClap, params: dict, message: str):
    assert_refused(served, [{"text": "a dog barks"}], message, **params)


def test_request_without_a_known_column_is_refused(served: ServedClap):
    assert_refused(served, [], "no row has text or audio")


@pytest.fixture
def address(sweep_store: Path, tmp_path: Path, clap: Clap) -> Iterator[str]:
    """Address of `mlflow models serve`, started in a folder where only the registered code can be imported."""
    (tmp_path / "checkpoint").mkdir()
    clap.save(tmp_path / "checkpoint")
    register(tmp_path / "checkpoint", name="tiny", uri=str(sweep_store))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = f"-m mlflow models serve -m models:/tiny/1 --env-manager local --host 127.0.0.1 --port {port}"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{sweep_store}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # MLflow starts uvicorn by name
    }
    environment.pop("PYTHONPATH", None)
    with (tmp_path / "server.log").open("w") as log:
        arguments = {"cwd": tmp_path, "env": environment, "stdout": log, "stderr": log}
        server = subprocess.Popen([sys.executable, *command.split()], start_new_session=True, **arguments)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/ping", tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def wait_for(server: subprocess.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(address, timeout=5).ok:
                return
        time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")


def test_server_answers_requests(address: str, clap: Clap, tones: list[Path]):
    def post(**body) -> tuple[int, dict]:
        response = requests.post(address, json=body, timeout=60)
        return response.status_code, response.json()

    audio = {"audio": encode(tones[0])}
    status, answer = post(dataframe_records=[{"text": "a dog barks"}, audio])
    assert status == 200
    assert_rows_close([answer["predictions"][0]["embedding"]], clap.get_text_embeddings(["a dog barks"]))
    assert_rows_close([answer["predictions"][1]["embedding"]], clap.get_audio_embeddings([tones[0]]))

    status, answer = post(dataframe_records=[audio], params={"class_names": ["dog", "rain"]})
    assert status == 200 and list(answer["predictions"][0]) == ["dog", "rain"]
    assert sum(answer["predictions"][0].values()) == pytest.approx(1)

    status, answer = post(dataframe_records=[{"audio": "dog.wav"}])
    assert status == 400 and "row 0: audio is 'dog.wav', which is not base64" in answer["message"]
    status, answer = post(dataframe_records=[{"txt": "a dog barks"}])
    assert status == 400 and "no row has text or audio" in answer["message"]

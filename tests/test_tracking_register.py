"""Registration of checkpoints as versions of a model in a real SQLite store."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient, pyfunc
from mlflow.entities.model_registry import ModelVersion

from clap.__main__ import main
from clap.model import Clap
from clap.tracking.register import register
from clap.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shutil.copy(empty_store, tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def run_dir(store: str, tmp_path_factory: pytest.TempPathFactory, tiny_clap) -> Path:
    """The folder of a run with two validations, the second of which is the best."""
    folder = tmp_path_factory.mktemp("run")
    with Tracker(store, "trials", run_name="nano-s0", run_dir=folder) as tracker:
        for step, recall in enumerate((0.25, 0.5)):
            tracker.log_metrics({"val/synthetic/text_to_audio/recall_at_1": recall, "train/loss": 1.0}, step)
    (folder / "metrics.json").write_text(json.dumps({"val/synthetic/text_to_audio/recall_at_1": 0.5}))
    for name in ("best", "last"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        tiny_clap().save(folder / "checkpoints" / name)
    (folder / "checkpoints" / "last" / "trainer.pt").write_bytes(b"not for serving")
    return folder


@pytest.fixture(scope="module")
def version(run_dir: Path) -> ModelVersion:
    return register(run_dir, name="tiny")


@pytest.fixture(scope="module")
def client(store: str) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store}")


def find_model(client: MlflowClient, version: ModelVersion):
    return client.get_logged_model(Path(version.source).parent.name)


def test_version_is_linked_to_the_run_of_its_checkpoint(version: ModelVersion, run_dir: Path, client: MlflowClient):
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    model = find_model(client, version)
    assert (version.run_id, model.source_run_id, model.status) == (run_id, run_id, "READY")
    assert [output.model_id for output in client.get_run(run_id).outputs.model_outputs] == [model.model_id]


def test_model_has_the_metrics_of_the_best_checkpoint(version: ModelVersion, client: MlflowClient):
    metrics = {metric.key: metric.value for metric in find_model(client, version).metrics}
    assert metrics == {"val/synthetic/text_to_audio/recall_at_1": 0.5}


def test_metrics_of_the_run_do_not_change(version: ModelVersion, client: MlflowClient):
    history = client.get_metric_history(version.run_id, "val/synthetic/text_to_audio/recall_at_1")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.5)]


def test_last_checkpoint_has_no_metrics_and_no_training_state(version: ModelVersion, run_dir: Path, client):
    later = register(run_dir / "checkpoints" / "last", name="tiny")
    assert int(later.version) > int(version.version)
    assert not find_model(client, later).metrics
    assert later.tags == {"checkpoint": str(run_dir / "checkpoints" / "last")}
    assert not list(Path(later.source).rglob("trainer.pt"))


def test_checkpoint_without_run_is_registered(store: str, tmp_path: Path, tiny_clap, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    tiny_clap().save(tmp_path / "checkpoint")
    found = register(tmp_path / "checkpoint", name="found", uri=store)
    assert int(found.version) == 1 and not found.run_id
    assert os.listdir(tmp_path) == ["checkpoint"]  # with global state, MLflow would create a store here
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_loaded_model_gives_the_same_embeddings(
    version: ModelVersion, run_dir: Path, tones: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow prepends the registered code
    model, clap = pyfunc.load_model(version.source), Clap.from_ckpt(run_dir)
    texts = model.predict(pd.DataFrame({"text": ["a dog barks", "rain"]}))["embedding"]
    expected = clap.get_text_embeddings(["a dog barks", "rain"]).numpy()
    np.testing.assert_allclose(np.stack(texts), expected, rtol=0, atol=1e-6)
    audio = model.predict(pd.DataFrame({"audio": [path.read_bytes() for path in tones]}))["embedding"]
    np.testing.assert_allclose(np.stack(audio), clap.get_audio_embeddings(tones).numpy(), rtol=0, atol=1e-6)


def test_registered_folder_contains_no_pickle(version: ModelVersion):
    suffixes = {path.suffix for path in Path(version.source).rglob("*") if path.is_file()}
    assert suffixes <= {"", ".css", ".js", ".json", ".py", ".safetensors", ".txt", ".yaml"}


def test_command_line_prints_the_serve_command(store: str, run_dir: Path, capsys: pytest.CaptureFixture):
    main(["register", str(run_dir), "--name", "spoken"])
    output = capsys.readouterr().out
    stores = f"MLFLOW_TRACKING_URI=sqlite:///{store} MLFLOW_REGISTRY_URI=sqlite:///{store}"
    assert f"{stores} mlflow models serve -m models:/spoken/1 --env-manager local" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a/b"], "Names cannot contain '/' or ':'"),
        (["--uri", "none"], "--uri none is not a store"),
    ],
)
def test_errors_are_one_line(run_dir: Path, arguments: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        main(["register", str(run_dir), *arguments])


def test_tokenizer_that_links_to_a_private_file_is_not_registered(store: str, run_dir: Path, tmp_path: Path, client):
    folder = Path(shutil.copytree(run_dir / "checkpoints" / "best", tmp_path / "foreign"))
    (tmp_path / "private").write_text("key")
    (folder / "tokenizer" / "notes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="notes.txt is a link out of .*; replace it by the file"):
        register(folder, name="foreign", uri=store)
    assert not client.search_registered_models("name = 'foreign'")


def test_damaged_checkpoint_is_not_registered(store: str, run_dir: Path, tmp_path: Path, client: MlflowClient):
    best = run_dir / "checkpoints" / "best"
    for name in ("config.yaml", "tokenizer"):
        (tmp_path / name).symlink_to(best / name)
    (tmp_path / "model.safetensors").write_bytes((best / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged or truncated"):
        register(tmp_path, name="damaged", uri=store)
    assert not client.search_registered_models("name = 'damaged'")

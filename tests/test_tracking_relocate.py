"""A store, its artifacts and its run folders that were moved, copied or mounted elsewhere."""

import json
import logging
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils

from clap.tracking.relocate import relocate_artifacts
from clap.tracking.store import find_recorded_uri, open_store, resolve_uri
from clap.tracking.tracker import Tracker, recorded_run
from clap.tracking.upload import upload


@pytest.fixture(scope="module")
def written(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a run that has one artifact."""
    outputs = tmp_path_factory.mktemp("written") / "outputs"
    outputs.mkdir()
    shutil.copy(empty_store, outputs)
    with Tracker(str(outputs / "mlflow.db"), "clap", run_name="r", run_dir=outputs / "train" / "r") as tracker:
        log_note(tracker, "first")
    return outputs


@pytest.fixture
def outputs(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `written` in tmp_path/old, as a run of another process would have written it there."""
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())  # MLflow's, by run
    shutil.copytree(written, tmp_path / "old" / "outputs")
    open_store(store_uri(tmp_path / "old" / "outputs"))
    return tmp_path / "old" / "outputs"


def store_uri(outputs: Path) -> str:
    return resolve_uri(str(outputs / "mlflow.db"))


def log_note(tracker: Tracker, name: str) -> None:
    path = tracker.history_path.parent / name
    path.write_text(name)
    tracker.log_artifact(path)


def resume(outputs: Path) -> set[str]:
    """Log a second artifact to the run of a folder; the names of all artifacts that can be read."""
    run_dir, uri = outputs / "train" / "r", store_uri(outputs)
    with Tracker(uri, "clap", run_name="r", run_dir=run_dir, run_id=recorded_run(run_dir, uri)) as tracker:
        log_note(tracker, "second")
        client = open_store(uri)
        files = client.list_artifacts(tracker.run_id)
        return {Path(client.download_artifacts(tracker.run_id, file.path)).read_text() for file in files}


def read_run_id(outputs: Path) -> str:
    return json.loads((outputs / "train" / "r" / "mlflow.json").read_text())["run_id"]


def test_moved_run_keeps_its_id_and_artifacts(outputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run_id, moved = read_run_id(outputs), tmp_path / "new" / "outputs"
    moved.parent.mkdir()
    outputs.rename(moved)
    with caplog.at_level(logging.INFO):
        assert resume(moved) == {"first", "second"}
    assert read_run_id(moved) == run_id and not outputs.exists()
    assert (moved / "mlartifacts" / run_id / "artifacts" / "second").is_file()
    assert [record.message for record in caplog.records if "was moved" in record.message] == [
        f"{moved}/mlflow.db was moved; its artifacts are now in {moved}/mlartifacts, no longer in {outputs}/mlartifacts"
    ]


def test_copied_store_uses_its_own_artifacts(outputs: Path, tmp_path: Path):
    shutil.copytree(outputs, tmp_path / "copy")
    assert resume(tmp_path / "copy") == {"first", "second"}
    assert not list((outputs / "mlartifacts").rglob("second"))


def test_store_without_its_artifacts_keeps_their_location(outputs: Path, tmp_path: Path):
    (tmp_path / "new" / "train").mkdir(parents=True)
    for name in ("mlflow.db", "train/r"):
        (outputs / name).rename(tmp_path / "new" / name)
    assert resume(tmp_path / "new") == {"first", "second"}
    assert list((outputs / "mlartifacts").rglob("second"))


def test_store_under_another_name_of_its_folder_is_unchanged(outputs: Path, tmp_path: Path):
    before = (outputs / "mlflow.db").read_bytes()
    (tmp_path / "mount").symlink_to(outputs)
    relocate_artifacts(tmp_path / "mount" / "mlflow.db")
    assert (outputs / "mlflow.db").read_bytes() == before


def test_upload_of_a_moved_run_folder_finds_the_store_above(outputs: Path, tmp_path: Path):
    outputs.rename(tmp_path / "moved")
    (line,) = upload(tmp_path / "moved" / "train" / "r")
    assert f"in {store_uri(tmp_path / 'moved')}" in line and not outputs.exists()


def test_run_folder_whose_store_is_gone_is_named(outputs: Path, tmp_path: Path):
    run_dir = Path(shutil.copytree(outputs / "train" / "r", tmp_path / "r"))
    record = json.loads((run_dir / "mlflow.json").read_text()) | {"uri": store_uri(outputs)}
    shutil.rmtree(outputs)
    with pytest.raises(FileNotFoundError, match="r was logged to .*mlflow.db, which does not exist; set --uri"):
        find_recorded_uri(run_dir, record)


def test_run_of_another_store_is_not_resumed(outputs: Path, tmp_path: Path, sweep_store: Path):
    assert recorded_run(outputs / "train" / "r", str(sweep_store)) is None
    assert recorded_run(outputs / "train" / "r", str(tmp_path / "absent.db")) is None
    assert not (tmp_path / "absent.db").exists()


def test_experiment_of_mlflow_itself_keeps_artifacts_next_to_the_store(outputs: Path):
    assert open_store(store_uri(outputs)).get_experiment("0").artifact_location == f"{outputs}/mlartifacts"

"""The tracker with real SQLite stores, read back through MLflow's client."""

import json
import logging
import math
import shlex
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from clap.run_folder import git_commit, read_history
from clap.tracking.tracker import MAX_PARAM_LENGTH, Tracker, to_params


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a store shared by the tests of this module."""
    return str(shutil.copy(empty_store, tmp_path_factory.mktemp("store")))


@pytest.fixture
def tracker(store: str, tmp_path: Path) -> Tracker:
    return Tracker(store, "clap", run_name="nano-s0", run_dir=tmp_path / "run")


def read_run(tracker: Tracker):
    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def break_store(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every later call of the tracker fail like one to an unreachable server."""

    def fail(*args, **kwargs):
        raise MlflowException("connection refused")

    for name in ("log_batch", "log_inputs", "log_artifact", "set_terminated", "get_run"):
        monkeypatch.setattr(tracker._client, name, fail)


def list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_run_is_created_in_the_named_experiment(tracker: Tracker):
    experiment = MlflowClient(tracker.uri).get_experiment_by_name("clap")
    assert read_run(tracker).info.experiment_id == experiment.experiment_id


def test_params_are_read_back_under_dotted_keys(tracker: Tracker):
    tracker.log_params({"seed": 0, "optimizer": {"lr": 1e-3}})
    assert read_run(tracker).data.params == {"seed": "0", "optimizer.lr": "0.001"}


def test_params_keep_an_empty_group():
    assert to_params({"fusion": {}}) == {"fusion": "{}"}


def test_long_params_are_truncated():
    assert len(to_params({"captions": "x" * 10_000})["captions"]) == MAX_PARAM_LENGTH


def test_passwords_are_not_recorded(tracker: Tracker):
    address = "http://me:hunter2@host/data?token=hunter2"
    tracker.log_params({"tracking": {"uri": address}})
    tracker.set_tags({"checkpoint": address})
    tracker.log_dataset("d", digest="0", split="train", source=address)
    with pytest.raises(ValueError), tracker:
        raise ValueError(address)
    run = tracker._client.get_run(tracker.run_id)
    hidden = "http://***@host/data?token=***"
    assert run.data.params["tracking.uri"] == run.data.tags["checkpoint"] == hidden
    assert "hunter2" not in str(run.to_dictionary()) + (tracker.history_path.parent / "mlflow.json").read_text()


def test_tags_of_none_are_skipped(tracker: Tracker):
    tracker.set_tags({"audio_encoder": "htsat_tiny", "git_commit": None})
    tags = read_run(tracker).data.tags
    assert tags["audio_encoder"] == "htsat_tiny" and "git_commit" not in tags


def test_dataset_is_an_input_of_the_run(tracker: Tracker):
    tracker.log_dataset("clotho", digest="f" * 64, split="train", source="data/clotho", num_clips=3839)
    (entry,) = read_run(tracker).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.tags[0].value) == ("clotho", "f" * 36, "train")


def test_metrics_wait_in_the_buffer(tracker: Tracker):
    tracker.log_metrics({"train/loss": 1.0}, 1)
    assert read_run(tracker).data.metrics == {}


def test_flush_sends_every_step(tracker: Tracker):
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    tracker.flush()
    history = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_full_buffer_is_sent(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.tracking.tracker.FLUSH_SIZE", 2)
    tracker.log_metrics({"train/loss": 1.0, "train/logit_scale": 14.3}, 1)
    assert read_run(tracker).data.metrics == {"train/loss": 1.0, "train/logit_scale": 14.3}


def test_old_buffer_is_sent(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.tracking.tracker.FLUSH_SECONDS", 0.0)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    assert read_run(tracker).data.metrics == {"train/loss": 1.0}


def test_nan_metric_is_kept(tracker: Tracker):
    tracker.log_metrics({"train/loss": math.nan}, 1)
    tracker.flush()
    assert math.isnan(read_run(tracker).data.metrics["train/loss"])


def test_infinite_metric_is_sent(tracker: Tracker):
    tracker.log_metrics({"train/loss": math.inf}, 1)
    tracker.flush()
    assert read_run(tracker).data.metrics["train/loss"] > 1e300  # SQLite stores the largest finite number


@pytest.mark.parametrize("name", ["recall@1", "val//loss", "/loss", "val/", ""])
def test_bad_metric_name_is_refused(tracker: Tracker, name: str):
    with pytest.raises(ValueError, match="metric name"):
        tracker.log_metrics({name: 1.0}, 1)


def test_artifact_is_next_to_the_store(tracker: Tracker, store: str, tmp_path: Path):
    (tmp_path / "loss.png").write_bytes(b"png")
    tracker.log_artifact(tmp_path / "loss.png", "plots")
    assert (Path(store).parent / "mlartifacts" / tracker.run_id / "artifacts/plots/loss.png").read_bytes() == b"png"


def test_missing_artifact_is_a_warning(tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracker.log_artifact(tmp_path / "absent.png")
    assert "absent.png" in list_warnings(caplog)[0]


def test_refused_call_does_not_block_later_ones(tracker: Tracker, tmp_path: Path):
    tracker.log_artifact(tmp_path / "absent.png")
    tracker.set_tags({"seed": 0})
    assert read_run(tracker).data.tags["seed"] == "0"


def test_finish_sends_the_buffer(tracker: Tracker):
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.finish()
    assert read_run(tracker).data.metrics == {"train/loss": 1.0}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_finish_sets_the_status(tracker: Tracker, status: str):
    tracker.finish(status)
    assert read_run(tracker).info.status == status


def test_finish_refuses_another_status(tracker: Tracker):
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        tracker.finish("DONE")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")])
def test_with_block_that_raises_closes_the_run(tracker: Tracker, error: type[BaseException], status: str):
    with pytest.raises(error), tracker:
        raise error("out of memory")
    assert read_run(tracker).info.status == status


def test_with_block_names_the_error(tracker: Tracker):
    with pytest.raises(RuntimeError), tracker:
        raise RuntimeError("out of memory")
    assert read_run(tracker).data.tags["error"] == "RuntimeError: out of memory"


def test_resume_continues_the_run(tracker: Tracker, store: str, tmp_path: Path):
    tracker.finish("KILLED")
    resumed = Tracker(store, "clap", run_name="nano-s0", run_id=tracker.run_id, run_dir=tmp_path)
    assert (resumed.run_id, read_run(resumed).info.status) == (tracker.run_id, "RUNNING")


def test_resume_keeps_a_changed_param_as_a_tag(tracker: Tracker, store: str, tmp_path: Path):
    tracker.log_params({"seed": 0, "trainer": {"max_epochs": 1}})
    resumed = Tracker(store, "clap", run_name="nano-s0", run_id=tracker.run_id, run_dir=tmp_path)
    resumed.log_params({"seed": 0, "trainer": {"max_epochs": 2}, "resume": "auto"})
    data = read_run(resumed).data
    assert (data.params["trainer.max_epochs"], data.tags["resumed.trainer.max_epochs"]) == ("1", "2")


def test_tag_of_a_changed_param_follows_a_later_resume(tracker: Tracker, store: str, tmp_path: Path):
    tracker.log_params({"trainer": {"max_epochs": 1}, "resume": None})
    for epochs in (2, 1):
        resumed = Tracker(store, "clap", run_name="nano-s0", run_id=tracker.run_id, run_dir=tmp_path)
        resumed.log_params({"trainer": {"max_epochs": epochs}, "resume": "auto"})
        tags = {name: value for name, value in read_run(resumed).data.tags.items() if name.startswith("resumed.")}
        assert tags == {"resumed.trainer.max_epochs": str(epochs)}


def test_class_that_has_moved_is_not_a_changed_param(tracker: Tracker, store: str, tmp_path: Path):
    tracker.log_params({"evaluation": {"_target_": "clap.evaluation.Retrieval"}})
    resumed = Tracker(store, "clap", run_name="nano-s0", run_id=tracker.run_id, run_dir=tmp_path)
    resumed.log_params({"evaluation": {"_target_": "clap.evaluation.retrieval.Retrieval"}})
    assert not [name for name in read_run(resumed).data.tags if name.startswith("resumed.")]


def test_resume_logs_new_params(tracker: Tracker, store: str, tmp_path: Path):
    tracker.log_params({"seed": 0})
    resumed = Tracker(store, "clap", run_name="nano-s0", run_id=tracker.run_id, run_dir=tmp_path)
    resumed.log_params({"seed": 1, "resume": "auto"})
    assert read_run(resumed).data.params["resume"] == "auto"


def test_resume_of_an_unknown_run_names_it(store: str, tmp_path: Path):
    with pytest.raises(ValueError, match="run_id=abc123.*tracking.uri"):
        Tracker(store, "clap", run_name="nano-s0", run_id="abc123", run_dir=tmp_path)


def test_one_process_can_have_two_runs(store: str, tmp_path: Path):
    runs = [Tracker(store, "clap", run_name=name, run_dir=tmp_path / name) for name in ("a", "b")]
    for value, run in enumerate(runs):
        run.log_metrics({"train/loss": value}, 1)
        run.finish()
    assert [read_run(run).data.metrics["train/loss"] for run in runs] == [0.0, 1.0]


def test_system_metrics_reach_the_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker.start_system_metrics()
    time.sleep(0.5)
    tracker.finish()
    assert "system/cpu_utilization_percentage" in read_run(tracker).data.metrics


def test_finish_stops_the_system_metrics_thread(tracker: Tracker):
    tracker.start_system_metrics()
    tracker.finish()
    assert "SystemMetricsMonitor" not in [thread.name for thread in threading.enumerate()]


def test_unreachable_store_is_one_warning(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    break_store(tracker, monkeypatch)
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0}, step)
        tracker.flush()
    tracker.set_tags({"seed": 0})
    tracker.finish()
    assert len(list_warnings(caplog)) == 1


def test_unreachable_store_is_not_retried_at_once(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    break_store(tracker, monkeypatch)
    tracker.set_tags({"seed": 0})
    monkeypatch.undo()
    tracker.set_tags({"fusion": "none"})
    assert "fusion" not in read_run(tracker).data.tags


def test_metrics_stay_in_the_run_folder_without_a_store(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    break_store(tracker, monkeypatch)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.finish()
    assert read_history(tracker.history_path) == [{"step": 1, "metrics": {"train/loss": 1.0}}]


def test_pending_metrics_are_sent_when_the_store_is_back(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.tracking.tracker.RETRY_SECONDS", 0.0)
    break_store(tracker, monkeypatch)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.flush()
    monkeypatch.undo()
    tracker.flush()
    assert read_run(tracker).data.metrics == {"train/loss": 1.0}


def test_finish_retries_an_unreachable_store(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    break_store(tracker, monkeypatch)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.flush()
    monkeypatch.undo()
    tracker.finish()
    run = read_run(tracker)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 1.0})


def test_metrics_file_is_written_at_once(tracker: Tracker):
    tracker.log_metrics({"train/loss": 2.5}, 7)
    entry = json.loads(tracker.history_path.read_text())
    assert (entry["step"], entry["metrics"]) == (7, {"train/loss": 2.5})


@pytest.mark.parametrize("uri", [None, "none"])
def test_tracking_turned_off_writes_metrics_only(uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(uri, "clap", run_name="nano-s0", run_dir=tmp_path / "run")
    tracker.log_params({"seed": 0})
    tracker.set_tags({"seed": 0})
    tracker.log_dataset("synthetic", digest="0", split="train")
    tracker.start_system_metrics()
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.log_artifact(tmp_path / "absent.png")
    tracker.finish()
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {"run", "run/metrics.jsonl", "run/mlflow.json"}


def test_url_hint_opens_the_store(tracker: Tracker, store: str):
    assert tracker.url_hint == f"mlflow ui --backend-store-uri sqlite:///{store}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one committed file."""
    (tmp_path / "train.py").write_text("pass\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    return tmp_path


def test_git_commit_of_a_clean_tree(repository: Path):
    assert len(git_commit(repository)) == 40


def test_git_commit_marks_a_changed_tree(repository: Path):
    (repository / "train.py").write_text("raise\n")
    assert git_commit(repository).endswith("-dirty")


def test_git_commit_outside_git_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None


def test_git_commit_without_git_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None


def test_hint_to_open_a_store_can_be_pasted_into_a_shell(tmp_path: Path):
    store = tmp_path / "my clap (v1)" / "m.db"
    tracker = Tracker(str(store), "e", run_name="r", run_dir=tmp_path / "r")
    tracker.finish()
    assert shlex.split(tracker.url_hint) == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{store}"]


def test_error_of_closing_a_run_does_not_hide_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = Tracker(None, "e", run_name="r", run_dir=tmp_path)

    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="checkpoint"), tracker:
        monkeypatch.setattr(tracker, "_update_record", fill_disk)
        raise OSError("checkpoint not written")

"""The MLflow runs of the jobs of a sweep."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from clap.study.job import Job
from clap.study.job_tracking import delete_lost_runs, end_run
from clap.tracking.tracker import Tracker


def test_run_of_a_killed_job_is_closed(sweep_store: Path, tmp_path: Path):
    settings = {"uri": str(sweep_store), "experiment": "clap"}
    run_id = Tracker(**settings, run_name="s0", run_dir=tmp_path / "s0").run_id
    end_run(settings, Job(tmp_path / "s0", "s0", "running"), "KILLED")
    assert MlflowClient(f"sqlite:///{sweep_store}").get_run(run_id).info.status == "KILLED"


def test_run_without_a_record_in_its_folder_is_deleted(
    sweep_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"uri": str(sweep_store), "experiment": "clap"}
    parent = Tracker(**settings, run_name="sweep", run_dir=tmp_path).run_id
    children = {}
    for name in ("s0", "s1"):
        tags = {"mlflow.parentRunId": parent, "folder": name}
        children[name] = Tracker(**settings, run_name=name, run_dir=tmp_path / name, tags=tags).run_id
    monkeypatch.setattr(
        "clap.study.job_tracking.job_tags", lambda: ("s0", {"mlflow.parentRunId": parent, "folder": "s0"})
    )
    client = MlflowClient(f"sqlite:///{sweep_store}")
    delete_lost_runs(settings, tmp_path / "s0")
    assert client.get_run(children["s0"]).info.lifecycle_stage == "active"
    (tmp_path / "s0" / "mlflow.json").unlink()
    delete_lost_runs(settings, tmp_path / "s0")
    assert client.get_run(children["s0"]).info.lifecycle_stage == "deleted"
    assert client.get_run(children["s1"]).info.lifecycle_stage == "active"

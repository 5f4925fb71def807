"""A sweep folder rejects other settings than those that it was started with."""

import json
from pathlib import Path

import pytest

from clap.study.job import Job
from clap.study.result_config import check_fixed_overrides, check_job_unchanged, check_settings_unchanged

FRONTEND = {"model.frontend._target_": "clap.audio.LogMelSpectrogram", "model.frontend.n_mels": 64}


def test_folder_of_another_sweep_is_rejected(tmp_path: Path):
    check_fixed_overrides(tmp_path, ["lr=1"])
    (tmp_path / "sweep.json").write_text('{"fixed": ["lr=1"]}')
    check_fixed_overrides(tmp_path, ["lr=1"])
    with pytest.raises(
        ValueError, match=r"contains a sweep with lr=1, which differs in lr=1, lr=2; set hydra.sweep.dir="
    ):
        check_fixed_overrides(tmp_path, ["lr=2"])


def test_changed_yaml_is_rejected_after_a_finished_job(tmp_path: Path):
    (tmp_path / "sweep.json").write_text('{"settings": {"dataset.num_train": 128, "optimizer.lr": 0.1}}')
    changed = {"dataset.num_train": 96, "optimizer.lr": 0.2}
    check_settings_unchanged(tmp_path, changed, ["optimizer.lr"])  # no job yet
    (tmp_path / "a").mkdir()
    Job(tmp_path / "a", "a", status="finished").write()
    check_settings_unchanged(tmp_path, {"dataset.num_train": 128, "optimizer.lr": 0.2}, ["optimizer.lr"])
    with pytest.raises(ValueError, match="was started with dataset.num_train=128, now it is 96; restore the value"):
        check_settings_unchanged(tmp_path, changed, ["optimizer.lr"])


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (
            {"evaluation.retrieval._target_": "clap.evaluation.Retrieval"},
            {"evaluation.retrieval._target_": "clap.evaluation.retrieval.Retrieval"},
        ),
        ({**FRONTEND, "model.frontend.float64": False, "model.frontend.bank_rate": None}, FRONTEND),
        (
            {**FRONTEND, "model.frontend.float64": True},
            {**FRONTEND, "model.frontend._target_": "clap.published.frontends.TransformersLogMel"},
        ),
    ],
)
def test_sweep_of_an_earlier_version_resumes(tmp_path: Path, before: dict, now: dict):
    job = Job(tmp_path / "a", "a", status="finished", config=before, error="was started with another class")
    job.folder.mkdir()
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": before}))
    check_job_unchanged(job, now)
    check_settings_unchanged(tmp_path, now, ["seed"])
    assert job.error is None
    with pytest.raises(ValueError, match="was started with .*_target_="):
        check_job_unchanged(job, {**now, next(key for key in now if key.endswith("_target_")): "clap.model.Other"})

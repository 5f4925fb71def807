"""A sweep folder rejects other settings than those that it was started with."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from clap.config.result_settings import find_changes
from clap.study.job import Job, read_job
from clap.study.result_config import (
    check_fixed_overrides,
    check_job_unchanged,
    check_same_data,
    check_settings_unchanged,
    digest_data,
)

FRONTEND = {"model.frontend._target_": "clap.audio.LogMelSpectrogram", "model.frontend.n_mels": 64}


def make_job(config: dict, **values) -> Job:
    return Job(Path("unused"), "now", "running", config=config, **values)


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
    check_job_unchanged(job, make_job(now))
    check_settings_unchanged(tmp_path, now, ["seed"])
    assert job.error is None
    with pytest.raises(ValueError, match="was started with .*_target_="):
        check_job_unchanged(job, make_job({**now, next(k for k in now if k.endswith("_target_")): "clap.model.Other"}))


def test_only_keys_that_the_earlier_version_did_not_have_are_not_compared():
    before = {"trainer.max_epochs": 4, "evaluation.retrieval._target_": "R", "audio_encoder.depths.0": 2}
    added = {"trainer.parallel": "ddp", "augmentation.gain": 6, "freeze": []}
    assert find_changes(before, before | added) == {}
    changed = {"evaluation.zero_shot._target_": "Z", "audio_encoder.depths.1": 2, "freeze.0": "text_encoder"}
    assert find_changes(before, before | changed) == {key: (None, value) for key, value in sorted(changed.items())}
    assert find_changes({"freeze": []}, {"freeze.0": "text_encoder"}) == {
        "freeze": ([], None),
        "freeze.0": (None, "text_encoder"),
    }


INDEX = "path,caption,split\na.wav,a dog barks,train\nb.wav,rain,val\nc.wav,a bell,test\n"


@pytest.fixture
def own_data(tmp_path: Path) -> DictConfig:
    """The config of a job on a CSV of three clips."""
    (tmp_path / "clips.csv").write_text(INDEX)
    node = {"_target_": "clap.dataset.csv.CSV", "root": str(tmp_path), "metadata": str(tmp_path / "clips.csv")}
    return OmegaConf.create({"dataset": {**node, "exclude": None, "batch_size": 2}})


def test_data_of_a_job_is_that_of_its_index(own_data: DictConfig, tmp_path: Path):
    before = digest_data(own_data)
    assert [text.split()[0] for text in before.values()] == ["1", "1", "1"]
    (tmp_path / "clips.csv").write_text(INDEX.replace(",rain", ",hail"))
    (tmp_path / "list.txt").write_text("a.wav\n")
    own_data.dataset.exclude = str(tmp_path / "list.txt")
    now = digest_data(own_data)
    assert [split for split in now if now[split] != before.get(split)] == ["val", "exclude"]


def test_index_is_read_once_for_the_jobs_of_a_sweep(own_data: DictConfig, tmp_path: Path):
    before = digest_data(own_data)
    (tmp_path / "clips.csv").unlink()
    assert digest_data(own_data, reread=False) == before
    assert digest_data(own_data) == {}


def test_job_on_other_data_is_rejected(own_data: DictConfig, tmp_path: Path):
    job = Job(tmp_path, "a", status="finished", data=digest_data(own_data))
    (tmp_path / "clips.csv").write_text(INDEX + "d.wav,a train,train\n")
    with pytest.raises(
        ValueError, match=r"has a result on other data: train was 1 clips \w+, now it is 2 clips \w+; rest"
    ):
        check_job_unchanged(job, make_job({}, data=digest_data(own_data)))
    assert "other data" in read_job(tmp_path).problem


def test_finished_job_is_kept_where_its_data_is_not(own_data: DictConfig, tmp_path: Path, caplog):
    job = Job(tmp_path, "a", status="finished", data=digest_data(own_data))
    (tmp_path / "clips.csv").unlink()
    check_job_unchanged(job, make_job({}, data=digest_data(own_data)))
    assert "the data cannot be compared" in caplog.text and job.error is None


def test_data_must_be_the_same_in_all_jobs_with_the_same_dataset(tmp_path: Path):
    config, data = {"seed": 0, "dataset.root": "a", "dataset.fold": 1}, {"train": "1 clips 0a"}
    for name, status in {"a": "finished", "b": "failed"}.items():
        (tmp_path / name).mkdir()
        Job(tmp_path / name, name, status, config=config, data=data if name == "a" else {"train": "0 clips"}).write()
    job = Job(tmp_path / "c", "c", "running", config={**config, "seed": 1}, data=data)
    check_same_data(job)
    job.data = {"train": "2 clips 1b"}
    with pytest.raises(ValueError, match="a has a result on other data: train was 1 clips 0a, now it is 2 clips 1b"):
        check_same_data(job)
    job.config["dataset.fold"] = 2
    check_same_data(job)


def test_jobs_with_other_keys_are_not_logged_as_of_an_earlier_version(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a").mkdir()
    config = {"audio_encoder._target_": "HTSAT", "audio_encoder.depth": 2}
    Job(tmp_path / "a", "a", "finished", config=config, data={"train": "1 clips 0a"}).write()
    other = {"audio_encoder._target_": "Cnn14", "audio_encoder.width": 8}
    check_same_data(Job(tmp_path / "b", "b", "running", config=other, data={"train": "1 clips 0a"}))
    assert "no such keys" not in caplog.text
    check_job_unchanged(make_job({"trainer._target_": "x"}), make_job({"trainer._target_": "x", "trainer.new": 1}))
    assert "the earlier version had no such keys: trainer.new" in caplog.text


def test_job_from_other_initial_weights_is_rejected(own_data: DictConfig, tmp_path: Path):
    best = tmp_path / "run" / "checkpoints" / "best"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"first")
    own_data.init_from = str(tmp_path / "run")
    job = Job(tmp_path, "a", status="finished", data=digest_data(own_data))
    check_job_unchanged(job, make_job({}, data=digest_data(own_data)))
    (best / "model.safetensors").write_bytes(b"second")
    with pytest.raises(ValueError, match="has a result on other data: init_from was [0-9a-f]{16}, now it is"):
        check_job_unchanged(job, make_job({}, data=digest_data(own_data)))
    job.data.pop("init_from")  # an earlier version did not record it
    check_job_unchanged(job, make_job({}, data=digest_data(own_data)))


def test_jobs_from_different_weights_may_share_a_sweep(tmp_path: Path):
    data = {"train": "1 clips a", "init_from": "1"}
    for name, source, digest in (("a", "x", "1"), ("b", "y", "2")):
        (tmp_path / name).mkdir()
        job = Job(tmp_path / name, name, "finished", config={"init_from": source}, data=data | {"init_from": digest})
        check_same_data(job)
        job.write()
    with pytest.raises(ValueError, match="init_from was 1, now it is 3"):
        check_same_data(Job(tmp_path / "c", "c", "running", config={"init_from": "x"}, data=data | {"init_from": "3"}))

"""One job of a sweep: run once, locked, resumed, and rejected if its settings have changed."""

import contextlib
import io
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from clap.log_lines import LineFormatter
from clap.run_folder import is_running
from clap.study.job import read_job
from clap.study.run_job import name_log_lines, run_job


@pytest.fixture
def job(sweep_project: Path, tmp_path: Path) -> Iterator[DictConfig]:
    """The config of a job that Hydra starts in tmp_path/job."""
    with initialize_config_dir(str(sweep_project / "conf"), version_base="1.3"):
        config = compose("config", ["lr=2"], return_hydra_config=True)
    before = HydraConfig.instance().cfg
    with open_dict(config):
        config.hydra.runtime.output_dir = str(tmp_path / "job")
        config.hydra.sweep.dir = str(tmp_path)
        HydraConfig.instance().set_config(config)
        config = config.copy()
        del config["hydra"]
    yield config
    HydraConfig.instance().cfg = before


def refuse(config: DictConfig) -> float:
    raise AssertionError("the job has run")


def fail(config: DictConfig) -> float:
    raise ValueError("no\n  data")


def test_finished_job_is_not_run_again(job: DictConfig, tmp_path: Path):
    assert run_job(lambda config: 0.5, job) == 0.5
    written = (tmp_path / "job" / "job.json").stat().st_mtime_ns
    assert run_job(refuse, job) == 0.5
    assert (tmp_path / "job" / "job.json").stat().st_mtime_ns == written


def test_job_without_a_value_is_finished(job: DictConfig, tmp_path: Path):
    run_job(lambda config: None, job)
    assert read_job(tmp_path / "job").status == "finished"


def test_failed_job_records_its_error_until_it_finishes(job: DictConfig, tmp_path: Path):
    with pytest.raises(ValueError):
        run_job(fail, job)
    assert (read_job(tmp_path / "job").status, read_job(tmp_path / "job").problem) == ("failed", "no data")
    run_job(lambda config: 0.5, job)
    assert (read_job(tmp_path / "job").status, read_job(tmp_path / "job").problem) == ("finished", None)


def test_running_job_is_locked_and_resumes_from_last(job: DictConfig, tmp_path: Path):
    seen = []
    run_job(lambda config: seen.append((is_running(tmp_path / "job"), config.resume)), job)
    assert seen == [(True, "auto")]
    assert not is_running(tmp_path / "job")


def test_job_of_another_process_is_skipped(job: DictConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "job").mkdir()
    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "job" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with caplog.at_level(logging.WARNING):
            assert math.isnan(run_job(refuse, job))
    assert "skipped, another process is running it" in caplog.text
    assert read_job(tmp_path / "job") is None


def test_job_with_a_truncated_record_is_run(job: DictConfig, tmp_path: Path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text('{"name": "job", "stat')
    assert run_job(lambda config: 0.5, job) == 0.5
    assert read_job(tmp_path / "job").status == "finished"


def test_finished_job_with_changed_settings_is_rejected_until_they_are_restored(job: DictConfig, tmp_path: Path):
    run_job(lambda config: 0.5, job)
    job.lr = 5
    with pytest.raises(ValueError, match="was started with lr=2, now it is 5; restore the value, delete the folder"):
        run_job(refuse, job)
    assert "lr=2" in read_job(tmp_path / "job").problem
    job.lr = 2
    assert run_job(refuse, job) == 0.5
    assert read_job(tmp_path / "job").problem is None


def test_job_without_a_checkpoint_runs_with_changed_settings(job: DictConfig, tmp_path: Path):
    with pytest.raises(ValueError):
        run_job(fail, job)
    job.lr = 5
    assert run_job(lambda config: 0.5, job) == 0.5
    assert read_job(tmp_path / "job").config["lr"] == 5


def test_job_with_a_checkpoint_is_rejected_with_changed_settings(job: DictConfig, tmp_path: Path):
    with pytest.raises(ValueError):
        run_job(fail, job)
    (tmp_path / "job" / "checkpoints" / "last").mkdir(parents=True)
    job.lr = 5
    with pytest.raises(ValueError, match="was started with lr=2"):
        run_job(refuse, job)


def test_commits_of_a_resumed_job_are_kept_in_order(job: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(commit: str, task=fail) -> list[str]:
        monkeypatch.setattr("clap.study.run_job.git_commit", lambda folder: commit)
        with contextlib.suppress(ValueError):
            run_job(task, job)
        return read_job(tmp_path / "job").commits

    assert run("a") == ["a"]
    assert run("b") == ["b"]  # without a checkpoint nothing of the first is left
    (tmp_path / "job" / "checkpoints" / "last").mkdir(parents=True)
    assert run("b") == ["b"]
    assert run("c") == ["b", "c"]
    assert run("d", lambda config: 0.5) == ["b", "c", "d"]
    assert run("e") == ["b", "c", "d"]  # finished


def test_job_on_changed_data_is_rejected(job: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for text, match in {"2 clips 0a": None, "3 clips 1b": "train was 2 clips 0a, now it is 3 clips 1b"}.items():
        monkeypatch.setattr("clap.study.run_job.digest_data", lambda config, text=text, **_: {"train": text})
        if match is None:
            run_job(lambda config: 0.5, job)
            continue
        with pytest.raises(ValueError, match=match):
            run_job(refuse, job)


def test_local_settings_may_change(job: DictConfig):
    run_job(lambda config: 0.5, job)
    job.tracking.experiment = "another"
    assert run_job(refuse, job) == 0.5


def test_lines_on_the_screen_have_the_name_of_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    handlers = [logging.StreamHandler(screen), logging.FileHandler(tmp_path / "train.log")]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    for handler in handlers:
        handler.setFormatter(LineFormatter("at noon %(message)s"))
    name_log_lines("lr=10%-s0")
    logging.getLogger("clap").warning("%s", "one\ntwo")
    assert screen.getvalue() == "at noon [lr=10%-s0] WARNING: one\nat noon [lr=10%-s0] WARNING: two\n"
    assert (tmp_path / "train.log").read_text() == "at noon WARNING: one\nat noon WARNING: two\n"

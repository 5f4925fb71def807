"""Sweeps, from the command line and in parts: a stand-in of milliseconds for training, and train.py itself."""

import contextlib
import csv
import logging
import math
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import DictConfig, open_dict
from script import ROOT, Script, run_script

import clap.study.sweep
from clap.commands.synthesize import synthesize
from clap.run_folder import is_running
from clap.study.factors import parse_overrides
from clap.study.job import Job, name_job, read_job
from clap.study.job_tracking import end_run
from clap.study.result_config import check_fixed_overrides, check_settings_unchanged
from clap.study.run_job import run_job
from clap.study.sweep import check_keys_name_folder, set_design
from clap.tracking.store import open_store
from clap.tracking.tracker import Tracker
from tests.test_train import TINY

RECALL = "test/x/text_to_audio/recall_at_1"
TASK = """
import json, os, time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from clap.config.launch import launch
from clap.study.run_job import run_job


def train(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.lr == 3 and not Path("data").exists():
        raise FileNotFoundError("no data")
    from clap.study.job import job_tags
    from clap.tracking.tracker import Tracker, recorded_run

    name, tags = job_tags()
    run_id = recorded_run(folder, cfg.tracking.uri)
    with Tracker(**cfg.tracking, run_name=name, tags=tags, run_id=run_id, run_dir=folder) as tracker:
        with open(folder.parent / "starts.txt", "a") as file:
            file.write(f"{name}\\n")
        time.sleep(float(os.environ.get("PAUSE", "0")))
        metrics = {"test/x/text_to_audio/recall_at_1": cfg.lr / 10}
        tracker.log_metrics(metrics, step=1)
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return cfg.lr / 10


if __name__ == "__main__":
    launch(train, config_name="config", run_job=run_job)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose training takes no time, under the sweeps of train.py; an empty store lies beside it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "train.py").write_text(TASK)
    (folder / "conf").mkdir()
    hydra = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["hydra"]
    config = {
        "lr": 1, "seed": 0, "resume": None, "study": None,
        "tracking": {"uri": None, "experiment": "clap"}, "hydra": hydra,
    }  # fmt: skip
    (folder / "conf" / "config.yaml").write_text(yaml.safe_dump(config))
    open_store(f"sqlite:///{folder / 'empty.db'}")
    return folder


@pytest.fixture
def store(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(project / "empty.db", tmp_path / "mlflow.db"))


def wait_for(path: Path, process: Script) -> None:
    while not path.exists():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()


def run(script: str | Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = run_script(Path(script), *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def read_runs(store: Path) -> tuple[Run, dict[str, Run]]:
    """The one parent and its children by job name; nothing else is in the store, and no job twice."""
    client = MlflowClient(f"sqlite:///{store}")
    runs = client.search_runs([client.get_experiment_by_name("clap").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("role") == "sweep"]
    children = {run.data.tags["job"]: run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    return parent, children


def statuses(store: Path) -> dict[str, str]:
    parent, children = read_runs(store)
    return {"sweep": parent.info.status} | {name: run.info.status for name, run in children.items()}


def read_board(sweep: Path) -> list[dict[str, str]]:
    """The rows of leaderboard.csv without what differs from one time to the next."""
    with open(sweep / "leaderboard.csv") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: row[key] for key in row if key not in ("seconds", "clips_per_second", "peak_memory_bytes")}
        for row in rows
    ]


# Names, commands, designs


NAMES = {
    "groups by their options": ({"audio_encoder": "htsat_nano", "text_encoder": "gpt2_nano"}, "htsat_nano-gpt2_nano"),
    "seed as a number": ({"audio_encoder": "htsat_nano", "seed": "0"}, "htsat_nano-s0"),
    "keys by their last part": ({"optimizer.lr": "0.001", "seed": "1"}, "lr=0.001-s1"),
    "another seed is no seed": ({"dataset.seed": "1"}, "seed=1"),
    "nothing differs": ({}, "job"),
}


@pytest.mark.parametrize(("levels", "name"), NAMES.values(), ids=NAMES)
def test_job_is_named_by_what_differs(levels: dict[str, str], name: str):
    assert name_job(levels, groups=("audio_encoder", "text_encoder")) == name


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    set_design("grid", sweeper="")


def split(*lines: str, size: int | None = None) -> list[list[list[str]]]:
    return BasicSweeper.split_arguments(parse_overrides({"loss": "nce,sigmoid", "seed": "0,1"}, lines), size)


def test_one_at_a_time_leaves_out_what_changes_two_factors(restored: None):
    set_design("one_at_a_time", sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
    (jobs,) = split("fusion=none,daf", "embed_dim=16", "seed=0")
    assert jobs == [
        ["loss=nce", "fusion=none", "embed_dim=16", "seed=0"],
        ["loss=nce", "fusion=daf", "embed_dim=16", "seed=0"],
        ["loss=sigmoid", "fusion=none", "embed_dim=16", "seed=0"],
    ]


def test_one_at_a_time_keeps_to_batches(restored: None):
    set_design("one_at_a_time", sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
    assert [len(batch) for batch in split("fusion=none,daf", size=4)] == [4, 2]


def test_one_at_a_time_needs_the_basic_sweeper(restored: None):
    with pytest.raises(ValueError, match="goes with hydra/sweeper=basic only"):
        set_design("one_at_a_time", sweeper="hydra_plugins.optuna.OptunaSweeper")


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path):
    check_fixed_overrides(tmp_path, ["lr=1"])
    (tmp_path / "sweep.json").write_text('{"fixed": ["lr=1"]}')
    check_fixed_overrides(tmp_path, ["lr=1"])
    with pytest.raises(ValueError, match=r"holds a sweep with lr=1; it differs in lr=1, lr=2; give hydra.sweep.dir="):
        check_fixed_overrides(tmp_path, ["lr=2"])


def test_changed_yaml_is_refused_once_a_job_counts(tmp_path: Path):
    (tmp_path / "sweep.json").write_text('{"settings": {"dataset.num_train": 128, "optimizer.lr": 0.1}}')
    changed = {"dataset.num_train": 96, "optimizer.lr": 0.2}
    check_settings_unchanged(tmp_path, changed, ["optimizer.lr"])  # no job yet
    (tmp_path / "a").mkdir()
    Job(tmp_path / "a", "a", status="finished").write()
    check_settings_unchanged(tmp_path, {"dataset.num_train": 128, "optimizer.lr": 0.2}, ["optimizer.lr"])
    with pytest.raises(ValueError, match="was started with dataset.num_train=128, now it is 96; put it back"):
        check_settings_unchanged(tmp_path, changed, ["optimizer.lr"])


def test_key_that_names_no_folder_is_not_swept():
    unnamed = ["dataset.root", "device"]
    check_keys_name_folder(["optimizer.lr", "seed"], unnamed)
    with pytest.raises(ValueError, match=r"device is swept .*exclude_keys=\[dataset.root\]'"):
        check_keys_name_folder(["device", "seed"], unnamed)


# One job


@pytest.fixture
def job(project: Path, tmp_path: Path) -> Iterator[DictConfig]:
    """The config of a job that Hydra has just started, in tmp_path/job."""
    with initialize_config_dir(str(project / "conf"), version_base="1.3"):
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
    raise AssertionError("the job was run")


def fail(config: DictConfig) -> float:
    raise ValueError("no\n  data")


def test_finished_job_is_kept_as_it_was(job: DictConfig, tmp_path: Path):
    assert run_job(lambda config: 0.5, job) == 0.5
    written = (tmp_path / "job" / "job.json").stat().st_mtime_ns
    assert run_job(refuse, job) == 0.5
    assert (tmp_path / "job" / "job.json").stat().st_mtime_ns == written


def test_job_without_a_value_is_finished(job: DictConfig, tmp_path: Path):
    run_job(lambda config: None, job)
    assert read_job(tmp_path / "job").status == "finished"


def test_failed_job_keeps_its_error_until_it_is_run_again(job: DictConfig, tmp_path: Path):
    with pytest.raises(ValueError):
        run_job(fail, job)
    assert (read_job(tmp_path / "job").status, read_job(tmp_path / "job").problem) == ("failed", "no data")
    run_job(lambda config: 0.5, job)
    assert (read_job(tmp_path / "job").status, read_job(tmp_path / "job").problem) == ("finished", None)


def test_job_is_held_while_it_runs_and_goes_on_from_last(job: DictConfig, tmp_path: Path):
    seen = []
    run_job(lambda config: seen.append((is_running(tmp_path / "job"), config.resume)), job)
    assert seen == [(True, "auto")]
    assert not is_running(tmp_path / "job")


def test_held_job_is_left_to_the_other_process(job: DictConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "job").mkdir()
    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "job" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with caplog.at_level(logging.WARNING):
            assert math.isnan(run_job(refuse, job))
    assert "another process is running it" in caplog.text
    assert read_job(tmp_path / "job") is None


def test_record_that_was_cut_short_is_a_job_to_do(job: DictConfig, tmp_path: Path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text('{"name": "job", "stat')
    assert run_job(lambda config: 0.5, job) == 0.5
    assert read_job(tmp_path / "job").status == "finished"


def test_finished_job_of_another_config_is_a_problem_until_it_is_put_back(job: DictConfig, tmp_path: Path):
    run_job(lambda config: 0.5, job)
    job.lr = 5
    with pytest.raises(ValueError, match="was started with lr=2, now it is 5; put it back, delete the folder"):
        run_job(refuse, job)
    assert "lr=2" in read_job(tmp_path / "job").problem
    job.lr = 2
    assert run_job(refuse, job) == 0.5
    assert read_job(tmp_path / "job").problem is None


def test_job_without_a_checkpoint_may_start_anew_with_another_config(job: DictConfig, tmp_path: Path):
    with pytest.raises(ValueError):
        run_job(fail, job)
    job.lr = 5
    assert run_job(lambda config: 0.5, job) == 0.5
    assert read_job(tmp_path / "job").config["lr"] == 5


def test_job_with_a_checkpoint_goes_on_with_the_same_config_alone(job: DictConfig, tmp_path: Path):
    with pytest.raises(ValueError):
        run_job(fail, job)
    (tmp_path / "job" / "checkpoints" / "last").mkdir(parents=True)
    job.lr = 5
    with pytest.raises(ValueError, match="was started with lr=2"):
        run_job(refuse, job)


def test_where_the_data_and_the_store_lie_may_change(job: DictConfig):
    run_job(lambda config: 0.5, job)
    job.tracking.experiment = "another"
    assert run_job(refuse, job) == 0.5


def test_run_of_a_killed_job_is_closed(store: Path, tmp_path: Path):
    settings = {"uri": str(store), "experiment": "clap"}
    run_id = Tracker(**settings, run_name="s0", run_dir=tmp_path / "s0").run_id
    end_run(settings, clap.study.job.Job(tmp_path / "s0", "s0", "running"), "KILLED")
    assert MlflowClient(f"sqlite:///{store}").get_run(run_id).info.status == "KILLED"


def test_run_that_its_folder_never_heard_of_is_deleted(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"uri": str(store), "experiment": "clap"}
    parent = Tracker(**settings, run_name="sweep", run_dir=tmp_path).run_id
    children = {}
    for name in ("s0", "s1"):
        tags = {"mlflow.parentRunId": parent, "folder": name}
        children[name] = Tracker(**settings, run_name=name, run_dir=tmp_path / name, tags=tags).run_id
    monkeypatch.setattr(
        "clap.study.job_tracking.job_tags", lambda: ("s0", {"mlflow.parentRunId": parent, "folder": "s0"})
    )
    client = MlflowClient(f"sqlite:///{store}")
    clap.study.job_tracking.delete_lost_runs(settings, tmp_path / "s0")
    assert client.get_run(children["s0"]).info.lifecycle_stage == "active"
    (tmp_path / "s0" / "mlflow.json").unlink()
    clap.study.job_tracking.delete_lost_runs(settings, tmp_path / "s0")
    assert client.get_run(children["s0"]).info.lifecycle_stage == "deleted"
    assert client.get_run(children["s1"]).info.lifecycle_stage == "active"


# Whole sweeps of the stand-in


def test_ctrl_c_prints_the_command_that_ends_the_sweep(project: Path, store: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    arguments = ["-m", "lr=1,2", "seed=5", f"hydra.sweep.dir={sweep}", f"tracking.uri={store}"]
    process = Script(project / "train.py", *arguments, PAUSE="600")
    wait_for(sweep / "starts.txt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert statuses(store) == {"sweep": "KILLED", "lr=1": "KILLED"}

    (line,) = [line for line in errors.splitlines() if line.startswith("to go on: python ")]
    _, *command = shlex.split(line.removeprefix("to go on: "))
    run(*command)
    assert statuses(store) == {"sweep": "FINISHED", "lr=1": "FINISHED", "lr=2": "FINISHED"}
    assert [row["job"] for row in read_board(sweep)] == ["lr=2", "lr=1"]


def test_sweep_without_a_result_ends_with_its_reasons(project: Path, tmp_path: Path):
    arguments = ["-m", "lr=3", "seed=0,1", "tracking.uri=null", "hydra.sweeper.max_batch_size=1"]
    output, errors = run(project / "train.py", *arguments, f"hydra.sweep.dir={tmp_path}", code=1)
    assert [row["problem"] for row in read_board(tmp_path)] == ["no data", "no data"]
    assert "MLflow is off" in output
    last = "error: not finished: s0, s1 (no data); the same sweep, started again, runs only what is left"
    assert errors.splitlines()[-1] == last


def test_two_terminals_share_a_sweep(project: Path, tmp_path: Path):
    sweep, store = tmp_path / "sweep", tmp_path / "mlflow.db"
    arguments = ["-m", "lr=1,2,4,5", f"hydra.sweep.dir={sweep}", f"tracking.uri={store}"]
    terminals = [Script(project / "train.py", *arguments, PAUSE="1") for _ in range(2)]
    ends = [terminal.communicate(timeout=300) for terminal in terminals]
    assert [terminal.returncode for terminal in terminals] == [0, 0], ends
    assert sorted((sweep / "starts.txt").read_text().split()) == ["lr=1", "lr=2", "lr=4", "lr=5"]
    assert set(statuses(store).values()) == {"FINISHED"}
    assert all("| lr=5 " in output and "| lr=1 " in output for output, _ in ends)


def test_unreachable_server_ends_a_sweep_before_its_first_job(project: Path, tmp_path: Path):
    arguments = ["-m", "lr=1,2", "tracking.uri=http://127.0.0.1:9", f"hydra.sweep.dir={tmp_path}"]
    output, errors = run(project / "train.py", *arguments, code=1)
    assert errors.startswith("error: tracking.uri=http://127.0.0.1:9 does not answer as an MLflow server")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "starts.txt").exists()


@pytest.mark.slow
def test_server_that_never_answers_ends_a_sweep_within_fifteen_seconds(project: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"tracking.uri=http://127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        _, errors = run(project / "train.py", "-m", "lr=1,2", uri, f"hydra.sweep.dir={tmp_path}", code=1)
        assert "does not answer as an MLflow server" in errors
        assert time.monotonic() - begin < 15


# A study of train.py


STUDY = """# @package _global_
defaults:
  - override /text_encoder: gpt2_nano
  - override /dataset: csv
study:
  design: one_at_a_time
  metrics: [test/csv/text_to_audio/recall_at_10, test/csv/audio_to_text/recall_at_10]
audio_encoder: {width: 2, frontend: {window: 1.0}}
text_encoder: {model: {n_embd: 16, n_head: 2, n_layer: 1}}
embed_dim: 16
dataset: {batch_size: 8, num_workers: 0}
trainer: {max_epochs: 1}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      optimizer: adamw,adam
      dataset.max_bad_fraction: 0.5,0.01
      seed: 0,1,2
"""


def test_study_runs_after_mending_only_what_failed(store: Path, tmp_path: Path):
    synthesize(tmp_path / "own", layout="csv", num_clips=24, sample_rate=16000)
    with open(tmp_path / "own" / "metadata.csv") as file:
        lost = next(tmp_path / "own" / row["path"] for row in csv.DictReader(file) if row["split"] == "train")
    lost.rename(tmp_path / "lost.wav")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "tiny.yaml").write_text(STUDY)
    sweep = tmp_path / "sweep"
    arguments = [
        "--config-dir", str(tmp_path / "conf"), "experiment=tiny", "seed=4", f"dataset.root={tmp_path / 'own'}",
        f"dataset.metadata={tmp_path / 'own' / 'metadata.csv'}", f"tracking.uri={store}", f"hydra.sweep.dir={sweep}",
    ]  # fmt: skip
    kept, left = ["adamw-max_bad_fraction=0.5-s4", "adam-max_bad_fraction=0.5-s4"], "adamw-max_bad_fraction=0.01-s4"

    output, errors = run(ROOT / "train.py", *arguments, code=1)
    assert statuses(store) == {"sweep": "FAILED", left: "FAILED"} | dict.fromkeys(kept, "FINISHED")
    assert read_board(sweep)[-1]["job"] == left
    assert "recordings of the train split of csv are missing" in read_board(sweep)[-1]["problem"]
    assert f"error: not finished: {left} (" in errors.splitlines()[-1]
    parent, children = read_runs(store)
    assert "are missing" in children[left].data.tags["error"]
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}
    assert len(before) == 2

    (tmp_path / "lost.wav").rename(lost)
    output, errors = run(ROOT / "train.py", *arguments)
    assert statuses(store) == {"sweep": "FINISHED", left: "FINISHED"} | dict.fromkeys(kept, "FINISHED")
    assert before.items() <= {path: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}.items()

    tags = children[kept[1]].data.tags
    expected = {"study": "tiny", "job": kept[1], "optimizer": "adam", "seed": "4", "audio_encoder": "cnn14_nano"}
    assert expected.items() <= tags.items()
    assert (parent.info.run_name, parent.data.tags["study"]) == ("tiny", "tiny")
    client = MlflowClient(f"sqlite:///{store}")
    assert {"leaderboard.csv", "leaderboard.md"} <= {item.path for item in client.list_artifacts(parent.info.run_id)}
    board = (sweep / "leaderboard.md").read_text()
    assert board in output
    assert board.startswith("| job ") and "csv text_to_audio recall_at_10 | csv audio_to_text recall_at_10" in board
    assert f"experiments/{parent.info.experiment_id}/runs?viewStateShareKey={parent.info.run_id}\n" in output
    assert output.splitlines()[-1].endswith(f"python experiments/report.py tiny --uri {store}")


# Launchers and kills


JOBS = ["seed=0,1", "optimizer=adamw,adam"]
LONGER = ["trainer.max_epochs=40", "trainer.eval_every=8", "trainer.save_every=2"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def sweep_arguments(folder: Path) -> list[str]:
    return ["-m", *TINY, *LONGER, *JOBS, f"hydra.sweep.dir={folder}", f"tracking.uri={folder / 'mlflow.db'}"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The leaderboard of a sweep that runs in one process, to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(ROOT / "train.py", *sweep_arguments(folder))
    check_complete(folder)
    return compare(folder)


def compare(sweep: Path) -> list[dict[str, str]]:
    """A leaderboard without the folders, whose names hold the store."""
    return [{key: row[key] for key in row if key != "folder"} for row in read_board(sweep)]


def check_complete(sweep: Path) -> None:
    names = {"adamw-s0", "adamw-s1", "adam-s0", "adam-s1"}
    assert statuses(sweep / "mlflow.db") == dict.fromkeys({"sweep", *names}, "FINISHED")
    assert {row["job"] for row in read_board(sweep)} == names


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [JOBLIB, ["hydra/launcher=submitit_local"]], ids=["joblib", "submitit"])
def test_launchers_make_every_job_once_from_an_empty_folder(launcher: list[str], undisturbed: list, tmp_path: Path):
    run(ROOT / "train.py", *sweep_arguments(tmp_path), *launcher)
    check_complete(tmp_path)
    assert compare(tmp_path) == undisturbed


def kill_five_times(command: list[str], sweep: Path, kill: Callable[[subprocess.Popen], None]) -> int:
    """Start a sweep and kill it while it starts, then four times in training; says how often that met it alive."""
    moments = random.Random(int(os.environ.get("KILL_SEED", "0")))
    started = []
    try:
        for again in range(5):
            lines = count_lines(sweep)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
            started.append(process)
            while again and process.poll() is None and count_lines(sweep) == lines:
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0.1, 3.0 if again else 8.0))
            kill(process)
            process.wait()
        run(*command[1:])
    finally:
        for process in started:
            kill_group(process)
    return sum(process.returncode == -signal.SIGKILL for process in started)


def count_lines(sweep: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in sweep.glob("*/metrics.jsonl"))


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_group, subprocess.Popen.kill], ids=["all processes", "the parent alone"])
def test_sweep_killed_five_times_ends_as_undisturbed(kill: Callable, undisturbed: list, tmp_path: Path):
    command = [sys.executable, str(ROOT / "train.py"), *sweep_arguments(tmp_path), *JOBLIB]
    assert kill_five_times(command, tmp_path, kill) >= 3
    check_complete(tmp_path)
    assert compare(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_stopped_joblib_sweep_leaves_no_worker_and_no_open_run(number: int, project: Path, store: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    arguments = ["-m", "lr=1,2,4", f"hydra.sweep.dir={sweep}", f"tracking.uri={store}", *JOBLIB]
    process = Script(project / "train.py", *arguments, PAUSE="600")
    wait_for(sweep / "starts.txt", process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "to go on: python " in errors
    assert set(statuses(store).values()) == {"KILLED"}
    assert not any(is_running(path.parent) for path in sweep.glob("*/.lock"))
    run(project / "train.py", *arguments)
    assert set(statuses(store).values()) == {"FINISHED"}

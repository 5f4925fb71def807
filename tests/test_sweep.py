"""Sweeps from the command line, of a train.py that takes milliseconds, and of a study of the real train.py."""

import csv
import re
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from mlflow import MlflowClient
from script import ROOT, Script
from sweeps import read_board, read_runs, run, statuses, wait_for

from clap.commands.synthesize import synthesize
from clap.plotting import PALETTE
from clap.run_folder import append_history
from clap.study.factors import parse_overrides
from clap.study.job import Job, read_jobs
from clap.study.sweep import name_sweep, rename_jobs, replace_stale, set_design
from clap.tracking.description import COLOR, NOTE
from clap.tracking.view import WORKFLOW


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    set_design("grid", sweeper="")


def split(*lines: str, size: int | None = None) -> list[list[list[str]]]:
    return BasicSweeper.split_arguments(parse_overrides({"loss": "nce,sigmoid", "seed": "0,1"}, lines), size)


def test_one_at_a_time_skips_jobs_with_two_changed_factors(restored: None):
    set_design("one_at_a_time", sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
    (jobs,) = split("fusion=none,daf", "embed_dim=16", "seed=0")
    assert jobs == [
        ["loss=nce", "fusion=none", "embed_dim=16", "seed=0"],
        ["loss=nce", "fusion=daf", "embed_dim=16", "seed=0"],
        ["loss=sigmoid", "fusion=none", "embed_dim=16", "seed=0"],
    ]


def test_one_at_a_time_is_split_into_batches(restored: None):
    set_design("one_at_a_time", sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
    assert [len(batch) for batch in split("fusion=none,daf", size=4)] == [4, 2]


def test_one_at_a_time_needs_the_basic_sweeper(restored: None):
    with pytest.raises(
        ValueError, match="requires hydra/sweeper=basic, not hydra_plugins.optuna.OptunaSweeper; remove"
    ):
        set_design("one_at_a_time", sweeper="hydra_plugins.optuna.OptunaSweeper")


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (["audio_encoder", "seed"], "audio_encoder"),
        (["seed", "dataset.test_fold"], "seed x test_fold"),
        (["dataset.test_fold"], "test_fold"),
        ([], "seed"),
    ],
)
def test_sweep_is_named_by_what_it_compares(swept: list[str], name: str):
    assert name_sweep(swept, Path("sweeps/2026-01-31/10-20-30")) == f"{name} 2026-01-31 10-20-30"


def test_job_folders_of_an_earlier_version_are_renamed(tmp_path: Path):
    old = tmp_path / "init_from=_a_b,lr=1,seed=0"
    (old / ".hydra").mkdir(parents=True)
    (old / ".hydra" / "overrides.yaml").write_text("- seed=0\n- init_from=/a/b\n- lr=1\n")
    Job(old, "lr=1-s0", status="finished").write()
    for _ in range(2):
        rename_jobs(tmp_path, ["lr", "seed"])
        assert [job.folder.name for job in read_jobs(tmp_path)] == ["lr=1,seed=0"]


def test_parent_run_keeps_no_number_of_an_earlier_best(tmp_path: Path):
    first = {"best/x": 0.5, "best_mean/x": 0.4, "best_mean/x/ci_low": 0.3}
    assert replace_stale(tmp_path, first) == first
    append_history(tmp_path, first, step=0)
    found = replace_stale(tmp_path, {"best/x": 0.6, "best_mean/x": 0.5})
    assert found == pytest.approx({"best/x": 0.6, "best_mean/x": 0.5, "best_mean/x/ci_low": float("nan")}, nan_ok=True)


def test_ctrl_c_prints_the_command_that_resumes_the_sweep(sweep_project: Path, sweep_store: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    arguments = ["-m", "lr=1,2", "seed=5", f"hydra.sweep.dir={sweep}", f"tracking.uri={sweep_store}"]
    process = Script(sweep_project / "train.py", *arguments, PAUSE="600")
    wait_for(sweep / "starts.txt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert statuses(sweep_store) == {"sweep": "KILLED", "lr=1": "KILLED"}

    (line,) = [line for line in errors.splitlines() if line.startswith("to resume: python ")]
    _, *command = shlex.split(line.removeprefix("to resume: "))
    run(*command)
    assert statuses(sweep_store) == {"sweep": "FINISHED", "lr=1": "FINISHED", "lr=2": "FINISHED"}
    assert [row["job"] for row in read_board(sweep)] == ["lr=2", "lr=1"]


def test_failed_sweep_lists_the_problems_of_its_jobs(sweep_project: Path, tmp_path: Path):
    arguments = ["-m", "lr=3", "seed=0,1", "tracking.uri=null", "hydra.sweeper.max_batch_size=1"]
    output, errors = run(sweep_project / "train.py", *arguments, f"hydra.sweep.dir={tmp_path}", code=1)
    assert [row["problem"] for row in read_board(tmp_path)] == ["no data", "no data"]
    assert "MLflow is off" in output
    last = "error: not finished: s0, s1 (no data); the same command runs only the unfinished jobs"
    assert errors.splitlines()[-1] == last


def test_two_processes_share_a_sweep(sweep_project: Path, tmp_path: Path):
    sweep, store = tmp_path / "sweep", tmp_path / "mlflow.db"
    arguments = ["-m", "lr=1,2,4,5", f"hydra.sweep.dir={sweep}", f"tracking.uri={store}"]
    processes = [Script(sweep_project / "train.py", *arguments, PAUSE="1") for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert sorted((sweep / "starts.txt").read_text().split()) == ["lr=1", "lr=2", "lr=4", "lr=5"]
    assert set(statuses(store).values()) == {"FINISHED"}
    assert all("| lr=5 " in output and "| lr=1 " in output for output, _ in ends)
    runs = {name: run.data for name, run in read_runs(store)[1].items()}
    assert [runs[f"lr={rate}"].tags[COLOR] for rate in (1, 2, 4, 5)] == list(PALETTE[:4])  # as listed, not as finished
    assert {"audio_encoder": "cnn14_nano", "lr": "5", "seed": "0"}.items() <= runs["lr=5"].params.items()


def test_unreachable_server_stops_a_sweep_before_its_first_job(sweep_project: Path, tmp_path: Path):
    arguments = ["-m", "lr=1,2", "tracking.uri=http://127.0.0.1:9", f"hydra.sweep.dir={tmp_path}"]
    output, errors = run(sweep_project / "train.py", *arguments, code=1)
    assert errors.startswith("error: tracking.uri=http://127.0.0.1:9 does not answer as an MLflow server")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "starts.txt").exists()


@pytest.mark.slow
def test_unresponsive_server_stops_a_sweep_within_fifteen_seconds(sweep_project: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"tracking.uri=http://127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        _, errors = run(sweep_project / "train.py", "-m", "lr=1,2", uri, f"hydra.sweep.dir={tmp_path}", code=1)
        assert "does not answer as an MLflow server" in errors
        assert time.monotonic() - begin < 15


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


def test_repeated_study_runs_only_the_failed_job(sweep_store: Path, tmp_path: Path):
    synthesize(tmp_path / "own", layout="csv", num_clips=24, sample_rate=16000)
    with open(tmp_path / "own" / "metadata.csv") as file:
        lost = next(tmp_path / "own" / row["path"] for row in csv.DictReader(file) if row["split"] == "train")
    lost.rename(tmp_path / "lost.wav")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "tiny.yaml").write_text(STUDY)
    sweep = tmp_path / "sweep"
    arguments = [
        "--config-dir", str(tmp_path / "conf"), "experiment=tiny", "seed=4", f"dataset.root={tmp_path / 'own'}",
        f"dataset.metadata={tmp_path / 'own' / 'metadata.csv'}", f"tracking.uri={sweep_store}",
        f"hydra.sweep.dir={sweep}",
    ]  # fmt: skip
    kept, left = ["adamw-max_bad_fraction=0.5-s4", "adam-max_bad_fraction=0.5-s4"], "adamw-max_bad_fraction=0.01-s4"

    output, errors = run(ROOT / "train.py", *arguments, code=1)
    assert statuses(sweep_store) == {"sweep": "FAILED", left: "FAILED"} | dict.fromkeys(kept, "FINISHED")
    assert read_board(sweep)[-1]["job"] == left
    assert "recordings of the train split of csv are missing" in read_board(sweep)[-1]["problem"]
    assert f"error: not finished: {left} (" in errors.splitlines()[-1]
    parent, children = read_runs(sweep_store)
    assert "are missing" in children[left].data.tags["error"]
    assert "**Error**: " in children[left].data.tags[NOTE]
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}
    assert len(before) == 2

    (tmp_path / "lost.wav").rename(lost)
    output, errors = run(ROOT / "train.py", *arguments)
    assert statuses(sweep_store) == {"sweep": "FINISHED", left: "FINISHED"} | dict.fromkeys(kept, "FINISHED")
    assert before.items() <= {path: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}.items()

    tags = children[kept[1]].data.tags
    expected = {"study": "tiny", "job": kept[1], "optimizer": "adam", "seed": "4", "audio_encoder": "cnn14_nano"}
    assert expected.items() <= tags.items()
    assert children[kept[1]].info.run_name == "cnn14_nano-gpt2_nano-csv-adam-max_bad_fraction=0.5-s4"
    params = children[kept[1]].data.params
    assert (params["audio_encoder"], params["optimizer"], params["dataset"]) == ("cnn14_nano", "adam", "csv")
    assert {children[name].data.tags[COLOR] for name in (*kept, left)} == {PALETTE[index] for index in (0, 1, 2)}
    assert "| test/csv/text_to_audio/recall_at_10 " in tags[NOTE]
    assert re.search(r"^    python train.py .*experiment=tiny", tags[NOTE], re.MULTILINE)
    assert (parent.info.run_name, parent.data.tags["study"]) == ("tiny", "tiny")
    client = MlflowClient(f"sqlite:///{sweep_store}")
    assert {"leaderboard.csv", "leaderboard.md"} <= {item.path for item in client.list_artifacts(parent.info.run_id)}
    artifacts = {item.path for item in client.list_artifacts(children[kept[1]].info.run_id)}
    assert {"train.log", "clips", "plots", "evaluation", "metrics.json"} <= artifacts
    assert parent.data.tags[NOTE].startswith("Compares **optimizer**, **dataset.max_bad_fraction**, **seed**.\n\n| ")
    board = (sweep / "leaderboard.md").read_text()
    assert board in output
    assert board.startswith("| job ") and "csv text_to_audio recall_at_10 | csv audio_to_text recall_at_10" in board
    assert f"experiments/{parent.info.experiment_id}/runs?{WORKFLOW}&viewStateShareKey={parent.info.run_id}\n" in output
    assert output.splitlines()[-1].endswith(f"python experiments/report.py tiny --uri {sweep_store}")

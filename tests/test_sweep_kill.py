"""Launchers run every job once, and a killed sweep resumes to the same results."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from script import ROOT, Script
from sweeps import read_board, run, statuses, wait_for

from clap.run_folder import is_running
from tests.test_train import TINY

JOBS = ["seed=0,1", "optimizer=adamw,adam"]
LONGER = ["trainer.max_epochs=40", "trainer.eval_every=8", "trainer.save_every=2"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def sweep_arguments(folder: Path) -> list[str]:
    return ["-m", *TINY, *LONGER, *JOBS, f"hydra.sweep.dir={folder}", f"tracking.uri={folder / 'mlflow.db'}"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The leaderboard of a sweep that runs in one process without interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(ROOT / "train.py", *sweep_arguments(folder))
    check_complete(folder)
    return read_results(folder)


def read_results(sweep: Path) -> list[dict[str, str]]:
    """The leaderboard without the folder names, which contain the path of the store."""
    return [{key: row[key] for key in row if key != "folder"} for row in read_board(sweep)]


def check_complete(sweep: Path) -> None:
    names = {"adamw-s0", "adamw-s1", "adam-s0", "adam-s1"}
    assert statuses(sweep / "mlflow.db") == dict.fromkeys({"sweep", *names}, "FINISHED")
    assert {row["job"] for row in read_board(sweep)} == names


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [JOBLIB, ["hydra/launcher=submitit_local"]], ids=["joblib", "submitit"])
def test_launcher_runs_every_job_once(launcher: list[str], uninterrupted: list, tmp_path: Path):
    run(ROOT / "train.py", *sweep_arguments(tmp_path), *launcher)
    check_complete(tmp_path)
    assert read_results(tmp_path) == uninterrupted


def kill_five_times(command: list[str], sweep: Path, kill: Callable[[subprocess.Popen], None]) -> int:
    """Start a sweep, kill it at start-up and four times in training; return how many kills hit a running process."""
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
@pytest.mark.parametrize("kill", [kill_group, subprocess.Popen.kill], ids=["all processes", "parent only"])
def test_sweep_killed_five_times_gives_the_same_results(kill: Callable, uninterrupted: list, tmp_path: Path):
    command = [sys.executable, str(ROOT / "train.py"), *sweep_arguments(tmp_path), *JOBLIB]
    assert kill_five_times(command, tmp_path, kill) >= 3
    check_complete(tmp_path)
    assert read_results(tmp_path) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_stopped_joblib_sweep_leaves_no_worker_and_no_open_run(
    number: int, sweep_project: Path, sweep_store: Path, tmp_path: Path
):
    sweep = tmp_path / "sweep"
    arguments = ["-m", "lr=1,2,4", f"hydra.sweep.dir={sweep}", f"tracking.uri={sweep_store}", *JOBLIB]
    process = Script(sweep_project / "train.py", *arguments, PAUSE="600")
    wait_for(sweep / "starts.txt", process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "to resume: python " in errors
    assert set(statuses(sweep_store).values()) == {"KILLED"}
    assert not any(is_running(path.parent) for path in sweep.glob("*/.lock"))
    run(sweep_project / "train.py", *arguments)
    assert set(statuses(sweep_store).values()) == {"FINISHED"}

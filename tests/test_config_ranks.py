"""A command in several processes: rank 0 runs Hydra and reports, the other ranks run its jobs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from config_yamls import write_yamls
from mlflow import MlflowClient
from script import ROOT, Script
from test_train import TINY

SCRIPT = """
import os
import signal
import sys
import time
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from clap.config.launch import launch

def main(cfg):
    from clap.process_group import gather_objects, rank
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / f"seen-{rank()}").write_text(f"{cfg.seed} of {gather_objects(rank())}")
    if cfg.note == f"error on {rank()}" and cfg.seed == 1:
        raise FileNotFoundError("no such file")
    if cfg.note == f"bug on {rank()}":
        raise TypeError("a bug")
    if cfg.note == f"kill {rank()}":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.note == "wait":
        time.sleep(60)
    gather_objects(cfg.seed)
    return float(cfg.seed)

if __name__ == "__main__":
    launch(main, config_name="config")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_yamls(folder)
    (folder / "train.py").write_text(SCRIPT)
    return folder / "train.py"


def start(script: Path, *arguments: str, **environment: str) -> list[Script]:
    """Two processes with the environment that torchrun gives them, except for its store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables |= environment
    return [Script(script, *arguments, RANK=rank, LOCAL_RANK=rank, **variables) for rank in "01"]


def finish(processes: list[Script]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each process."""
    outputs = [process.communicate(timeout=60) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def test_job_that_fails_on_one_rank_is_reported_by_rank_0_and_the_sweep_continues(script: Path):
    sweep = ["-m", "seed=0,1,2", "note=error on 1", "hydra.sweep.dir=sweep", "hydra.output_subdir=.hydra"]
    (status, _, errors), (other_status, other_output, other_errors) = finish(start(script, *sweep))
    assert (status, other_status, other_output, other_errors) == (1, 1, "", "")
    assert "error: job 1 (seed=1): rank 1: FileNotFoundError: no such file" in errors
    seen = {path.parent.name: path.read_text() for path in (script.parent / "sweep").glob("*/seen-1")}
    assert seen == {job: f"{job} of [0, 1]" for job in "012"}
    log = (script.parent / "sweep" / "1" / "train.log").read_text()
    assert log.count("2 processes on 1 machine(s)") == 1
    assert log.count("raise FileNotFoundError") == 1


def test_error_that_all_ranks_have_is_the_line_of_rank_0(script: Path):
    (status, _, errors), (_, _, other_errors) = finish(start(script, "lr=3"))
    assert (status, errors) == (1, "error: lr=3: there is no key lr; did you mean optimizer.lr?\n")
    assert (
        other_errors == f"error: rank 1: {errors.removeprefix('error: ')}"
    )  # late: a launcher ends the process before


def test_bug_on_another_rank_is_in_the_log_with_its_traceback(script: Path):
    (status, _, errors), (other_status, _, other_errors) = finish(start(script, "note=bug on 1", "hydra.run.dir=bug"))
    assert (status, other_status, other_errors) == (1, 1, "")
    assert errors.splitlines()[-1].startswith("error: rank 1: TypeError: a bug (traceback: bug")
    assert "in main\n" in (script.parent / "bug" / "train.log").read_text().partition("with this traceback")[2]


@pytest.mark.slow
def test_killed_rank_ends_rank_0_with_a_message(script: Path):
    (status, _, errors), _ = finish(start(script, "note=kill 1", "hydra.run.dir=kill"))
    assert status == 1 and "another process of this run has ended without a message" in errors


def test_signals_to_all_ranks_end_them_quietly_and_the_command_to_resume_is_printed_once(script: Path):
    processes = start(script, "note=wait", "hydra.run.dir=wait")
    while len(list((script.parent / "wait").glob("seen-*"))) < 2:
        time.sleep(0.05)
    for _ in range(2):
        for process in processes:
            process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    (status, _, errors), (_, _, other_errors) = finish(processes)
    resume, error = errors.splitlines()
    assert (status, error, other_errors) == (130, "error: interrupted", "")
    assert resume.startswith("to resume: python ")


@pytest.mark.slow
def test_torchrun_trains_stops_resumes_and_leaves_one_run(tmp_path: Path):
    """As a user types it; the second run resumes the first, which torchrun has stopped."""
    folder, store = tmp_path / "run", tmp_path / "mlflow.db"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    command += [*TINY, f"hydra.run.dir={folder}", f"tracking.uri={store}", "trainer.save_every=1"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    options = {"cwd": ROOT, "env": environment, "text": True, "stderr": subprocess.PIPE}
    stopped = subprocess.Popen([*command, "trainer.max_epochs=100"], **options)
    while not (folder / "checkpoints" / "last").exists():  # which takes half a minute on two busy cores
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.1)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=60)
    (line,) = [line for line in errors.splitlines() if line.startswith("to resume:")]
    assert line.startswith("to resume: torchrun --standalone --nproc-per-node=2 train.py hydra.run.dir=")
    resumed = subprocess.run([*command, "resume=auto"], check=False, **options)
    assert resumed.returncode == 0, resumed.stderr
    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED" and "test/synthetic/text_to_audio/recall_at_1" in run.data.metrics
    log = (folder / "train.log").read_text()
    assert "batch 8 = 2 x 4 clips" in log and "resumed from" in log

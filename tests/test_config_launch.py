"""`launch` reports errors in one line, and keeps the traceback in the log file."""

import os
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from config_yamls import write_yamls

from clap.config.launch import format_error, is_expected
from clap.processes import PeerError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from clap.config.launch import launch

def main(cfg):
    print("seed", cfg.seed, flush=True)
    if cfg.note == "heavy":
        print([name for name in ("torch", "mlflow", "transformers") if name in sys.modules])
    if cfg.note == "value":
        raise ValueError("first line\\nsecond line")
    if cfg.note == "bug":
        raise TypeError("a bug")
    if cfg.note == "ctrl-c":
        raise KeyboardInterrupt
    if cfg.note in ("disk full", "bad loss"):
        (Path(HydraConfig.get().runtime.output_dir) / "checkpoints" / "last").mkdir(parents=True)
        raise OSError("trainer.pt: not written") if cfg.note == "disk full" else FloatingPointError("nan")
    if cfg.seed == 1 and cfg.note == "second":
        raise FileNotFoundError("no such file")

if __name__ == "__main__":
    launch(main, config_name="config")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train.py next to the yamls."""
    folder = tmp_path_factory.mktemp("script")
    write_yamls(folder)
    (folder / "train.py").write_text(SCRIPT)
    return folder / "train.py"


def run(script: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    command = [sys.executable, str(script), *argv]
    env = clean | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=script.parent, env=env)


def test_launch_runs_the_task_without_heavy_imports(script: Path) -> None:
    assert run(script, "seed=5", "note=heavy").stdout == "seed 5\n[]\n"


def test_launch_reports_a_wrong_override_in_one_line(script: Path) -> None:
    result = run(script, "lr=3")
    expected = "error: lr=3: there is no key lr; did you mean optimizer.lr?\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


def test_password_is_not_written(script: Path) -> None:
    server = "tracking.experiment=http://me:hunter2@host"
    result = run(script, "note=value", server, "hydra.run.dir=secret", "hydra.output_subdir=.hydra")
    assert "first line" in result.stderr and "hunter2" not in result.stdout + result.stderr
    files = [path for path in (script.parent / "secret").rglob("*") if path.is_file()]
    assert len(files) >= 4 and not [path for path in files if "hunter2" in path.read_text()]


def test_launch_shortens_errors_of_hydra(script: Path) -> None:
    result = run(script, "hydra.run=3")
    assert (result.returncode, result.stderr) == (1, "error: Error merging override hydra.run=3\n")


def test_launch_reports_an_expected_error_in_one_line(script: Path) -> None:
    result = run(script, "note=value", "hydra.run.dir=value")
    log = "value/train.log"
    expected = f"error: first line second line (traceback: {log})\n"
    assert (result.returncode, result.stderr) == (1, expected)
    assert "Traceback" in (script.parent / log).read_text()


def test_hydra_full_error_shows_the_traceback(script: Path) -> None:
    assert "Traceback" in run(script, "note=value", HYDRA_FULL_ERROR="1").stderr


def test_launch_keeps_the_traceback_of_a_bug(script: Path) -> None:
    result = run(script, "note=bug")
    assert result.returncode == 1 and result.stderr.endswith("TypeError: a bug\n")


def test_ctrl_c_prints_the_command_that_resumes_and_exits_with_130(script: Path) -> None:
    result = run(script, "note=ctrl-c", "hydra.run.dir=out")
    resume, error = result.stderr.splitlines()
    assert (result.returncode, error) == (130, "error: interrupted")
    assert resume.startswith("to resume: python ")
    assert resume.endswith("/out resume=auto note=ctrl-c")


def test_sweep_names_a_failed_job_and_runs_the_others(script: Path) -> None:
    (script.parent / "timed" / f"{date.today().year}").mkdir(parents=True)
    result = run(script, "-m", "seed=0,1,2", "note=second", "hydra.sweep.dir=timed/${now:%Y}")
    assert [line for line in result.stdout.splitlines() if line.startswith("seed")] == ["seed 0", "seed 1", "seed 2"]
    assert "error: job 1 (seed=1): no such file" in result.stderr
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "error: no such file")
    assert (script.parent / "timed" / f"{date.today().year}-2" / "2" / "train.log").exists()


def test_folder_that_holds_a_run_is_refused_in_one_line(script: Path) -> None:
    (script.parent / "held" / "checkpoints").mkdir(parents=True)
    result = run(script, "hydra.run.dir=held")
    assert result.returncode == 1 and result.stderr.startswith("error: held holds a run (checkpoints); ")
    assert len(result.stderr.splitlines()) == 1


def test_failure_after_a_checkpoint_prints_the_command_that_resumes(script: Path) -> None:
    result = run(script, "note=disk full", "hydra.run.dir='disk (é)'")
    resume, error = result.stderr.splitlines()
    assert error.startswith("error: trainer.pt: not written")
    _, *command = shlex.split(resume.removeprefix("to resume: "))
    assert run(script, *command[1:], "note=heavy").returncode == 0
    result = run(script, "note=bad loss", "hydra.run.dir=bad")
    assert len(result.stderr.splitlines()) == 1


def test_killed_worker_of_a_loader_is_one_line() -> None:
    for end in ("is killed by signal: Killed. ", "exited unexpectedly with exit code 1. Details are lost"):
        error = RuntimeError(f"DataLoader worker (pid 31) {end}")
        assert is_expected(error) and "memory was full; resume with a lower dataset.num_workers" in format_error(error)
    assert is_expected(RuntimeError("DataLoader worker (pid(s) 31, 32) exited unexpectedly"))
    of_other_rank = PeerError("rank 1: RuntimeError: DataLoader worker (pid 31) is killed by signal: Killed. ")
    assert format_error(of_other_rank).startswith("rank 1: a process that loads data was killed by signal: Killed, ")
    assert not is_expected(RuntimeError("shapes do not match"))

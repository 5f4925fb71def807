"""`launch` reports errors in one line, and keeps the traceback in the log file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from config_yamls import write_yamls

from clap.config.launch import resume_command

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys
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


def test_launch_shortens_errors_of_hydra(script: Path) -> None:
    result = run(script, "hydra.nothing=3")
    assert (result.returncode, result.stderr) == (1, "error: Could not override 'hydra.nothing'.\n")


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


def test_sweep_continues_after_a_failed_job(script: Path) -> None:
    result = run(script, "-m", "seed=0,1,2", "note=second")
    assert [line for line in result.stdout.splitlines() if line.startswith("seed")] == ["seed 0", "seed 1", "seed 2"]


def test_failed_job_is_named(script: Path) -> None:
    result = run(script, "-m", "seed=0,1", "note=second")
    assert "error: job 1 (note=second,seed=1): no such file" in result.stderr
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "error: no such file")


COMMANDS = {
    "flag first": (["-m", "lr=1,2"], "python train.py -m hydra.sweep.dir=out resume=auto lr=1,2"),
    "flag last": (["lr=1,2", "-m"], "python train.py hydra.sweep.dir=out resume=auto lr=1,2 -m"),
    "no override": (["-m"], "python train.py -m hydra.sweep.dir=out resume=auto"),
    "in their place": (["resume=a", "hydra.sweep.dir=${now:%H}"], "python train.py hydra.sweep.dir=out resume=auto"),
    "quoted": (["evaluation=[a,b]"], "python train.py hydra.sweep.dir=out resume=auto 'evaluation=[a,b]'"),
}


@pytest.mark.parametrize(("arguments", "command"), COMMANDS.values(), ids=COMMANDS)
def test_resume_command(arguments: list[str], command: str):
    assert resume_command(["train.py", *arguments], ["hydra.sweep.dir=out", "resume=auto"]) == command

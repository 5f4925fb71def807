"""Runs programs of this repository as a user starts them, each in its own process.

Processes are forked from a server that has already imported the slow packages, and draw no plots.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = [  # without clap.study.sweep, because Hydra reloads its sweepers
    "clap.tracking.tracker",
    "clap.training.trainer",
    "clap.evaluation.run_plots",
    "clap.published.load",
    "clap.audio_encoder.cnn14",
    "clap.audio_encoder.htsat",
    "clap.dataset.huggingface",
    "mlflow.store.tracking.sqlalchemy_store",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.roberta.modeling_roberta",
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTS)


class Script:
    """A running program with the interface of `subprocess.Popen`; it handles SIGINT even if the tests ignore it."""

    def __init__(self, script: Path, *arguments: str, cwd: Path | None = None, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        self.process = FORKS.Process(target=become, args=(script, arguments, cwd or script.parent, env, self.files))
        self.process.start()
        atexit.register(self.process.kill)  # else the test session waits for it after a failure

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("script", timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return tuple(file.read_text() for file in self.files)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def become(script: Path, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], files: list[Path]) -> None:
    """Run the program in this process."""
    os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Figure.savefig = skip  # half the time of a run on a tiny model; the first run of test_train.py is not forked
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.parent)
    if script.parent != ROOT and (script.parent / "clap").is_dir():  # a copy of the repository imports its own modules
        for name in [name for name in sys.modules if name.split(".")[0] == "clap"]:
            del sys.modules[name]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:  # interpreter shutdown, which a fork skips or delays
        threading._shutdown()
        atexit._run_exitfuncs()


def skip(*args: object, **options: object) -> None:
    """Do nothing; the files of the plots are empty."""


def run_script(script: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program and wait until it exits."""
    process = Script(script, *arguments, cwd=cwd)
    output, errors = process.communicate(timeout=540)
    return subprocess.CompletedProcess([str(script), *arguments], process.returncode, output, errors)

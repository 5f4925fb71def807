"""Runs a task under Hydra: checks the command line first, and reports expected errors in one line on stderr."""

import contextlib
import functools
import inspect
import logging
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from clap.atomic import is_full_disk
from clap.config.history import restore_config
from clap.config.output_folder import (
    RUN_FOLDER,
    SWEEP_FOLDER,
    advise_folder,
    insert_overrides,
    own_output_folder,
    prints_only,
    resume_command,
)
from clap.config.overrides import VERSION_BASE, check_overrides
from clap.config.secrets import hide_secrets, move_logins
from clap.log_lines import log_warnings
from clap.processes import PeerError, raise_first_signal, read_processes, watch_parent
from clap.progress import log_above_bars
from clap.run_folder import own_folder

if TYPE_CHECKING:  # imports torch
    from clap.config.ranks import Ranks

# Errors that a user can fix; any other exception is a bug and keeps its traceback.
EXPECTED = (
    *(ValueError, ArithmeticError, OSError, ImportError, BrokenExecutor),
    *(HydraException, OmegaConfBaseException, yaml.YAMLError, PeerError),
)
GRACE_SECONDS = 3.0  # for rank 0 to print an error that all ranks have, and for their launcher to end them
# PyTorch's RuntimeError of a DataLoader whose worker process has died
KILLED_WORKER = re.compile(r"DataLoader worker \(pid\D*[\d, ]+\) (is killed by signal: [^.]*|exited unexpectedly)")

Task = Callable[[DictConfig], Any]
Check = Callable[[dict[str, Any]], Any]
RunJob = Callable[[Task, DictConfig], Any]


def launch(
    task: Task,
    *,
    config_name: str,
    config_path: str = "conf",
    run_job: RunJob | None = None,
    store_options: Callable[[Sequence[str]], None] | None = None,
    check: Check | None = None,
) -> None:
    """Check the command line, then run a task under Hydra, as `hydra.main` does.

    An expected error prints one line on stderr and exits with status 1, Ctrl-C with 130. The traceback is written to
    the job's log file, and to stderr with HYDRA_FULL_ERROR=1. Under -m, a failed job prints its line and the sweep
    continues. After Ctrl-C or SIGTERM, and after an error that follows a checkpoint, a task whose config has the key
    `resume` prints the command that resumes it.

    Of several processes, as torchrun or srun start them, each checks the command line; then rank 0 runs Hydra, and the
    others run its jobs (see `clap.config.ranks`).

    Args:
        task: a function of the composed config, or one decorated with `hydra.main`; it imports slow packages itself.
        config_path: the folder of the yamls, relative to the file that defines the task.
        run_job: runs the task for a job of a sweep with Hydra callbacks; by default the task is called directly.
        store_options: adds options of config groups that depend on the command line, which is its argument.
        check: called before Hydra starts, for a sweep with several configs, so that each value is in one of them.
    """
    config_dir = Path(inspect.getfile(inspect.unwrap(task))).resolve().parent / config_path
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises exceptions instead of printing its own report
    own = read_processes()
    if own.world_size > 1:
        raise_first_signal()
        if own.launcher == "torchrun":
            watch_parent(os.getppid())
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of a model that uses all of its parameters
    elif signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    run = hydra.main(version_base=VERSION_BASE, config_path=str(config_dir), config_name=config_name)
    try:
        sys.argv[1:] = move_logins(sys.argv[1:])
        if store_options is not None:
            store_options(sys.argv[1:])
        for config in check_overrides(sys.argv[1:], config_dir=config_dir, config_name=config_name):
            if check is not None:
                check(config)
        if own.rank > 0:
            sys.exit(0 if prints_only(sys.argv[1:]) else open_ranks().follow(task))
        with contextlib.ExitStack() as stack:
            if own.world_size > 1 and not prints_only(sys.argv[1:]):
                stack.enter_context(open_ranks().leading())
            folder = own_output_folder(sys.argv[1:], config_dir=config_dir, config_name=config_name)
            sys.argv[1:] = insert_overrides(sys.argv[1:], stack.enter_context(folder))
            run(_report_failure(task, run_job, show_traceback=show_traceback))()
    except KeyboardInterrupt:
        if own.rank == 0:
            print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if own.rank > 0:
            wait_for_report()
        if show_traceback or not is_expected(error):
            raise
        sys.exit(f"error: {f'rank {own.rank}: ' if own.rank else ''}{format_error(error)}")


def wait_for_report() -> None:
    """On a rank that has failed: give rank 0 time to report the error, and exit if the launcher ends this process."""
    try:
        time.sleep(GRACE_SECONDS)
    except KeyboardInterrupt:
        sys.exit(130)


@functools.cache
def open_ranks() -> "Ranks":
    """The other processes of this run."""
    from clap.config.ranks import Ranks  # imports torch, which takes a second

    return Ranks(read_processes(), sys.argv[1:])


def _report_failure(task: Task, run_job: RunJob | None, *, show_traceback: bool) -> Task:
    """Wrap the task: log the traceback of a failure, and print an expected error in one line on stderr.

    A single run exits with SystemExit; under -m, Hydra receives the exception and runs the other jobs.
    """
    started = time.time()

    @functools.wraps(task)
    def run_all(config: DictConfig) -> Any:
        """Run a job in all processes; those of submitit each call this."""
        own = read_processes()
        if own.world_size == 1:
            return run(task, config)
        if own.rank > 0:
            open_ranks().follow(task)
            return None
        with open_ranks().leading() if own.launcher == "submitit" else contextlib.nullcontext():
            return run(open_ranks().lead(task), config)

    def run(task: Task, config: DictConfig) -> Any:
        job = HydraConfig.get()
        try:
            with log_warnings(), log_above_bars():
                if run_job and job.mode == RunMode.MULTIRUN and job.callbacks:
                    return run_job(task, config)
                key = RUN_FOLDER if job.mode == RunMode.RUN else SWEEP_FOLDER
                advice = advise_folder(config, key)
                with own_folder(Path(job.runtime.output_dir), resume=config.get("resume"), advice=advice):
                    return task(config)
        except KeyboardInterrupt:
            if job.mode == RunMode.RUN and "resume" in config:
                _print_resume_command()
            raise
        except Exception as error:
            log = _write_traceback()
            if job.mode == RunMode.MULTIRUN:
                name = f"job {job.job.num} ({job.job.override_dirname or 'nothing swept'})"
                print(f"error: {name}: {format_error(error)}{log}", file=sys.stderr)
                if job.callbacks:
                    return math.nan
                raise
            if "resume" in config and _can_be_resumed(error, started):
                _print_resume_command()
            if is_expected(error) and not show_traceback:
                sys.exit(f"error: {format_error(error)}{log}")
            raise
        finally:
            restore_config(Path(job.runtime.output_dir))

    return run_all


def _can_be_resumed(error: Exception, started: float) -> bool:
    """Whether the run has saved a checkpoint, and would not fail at the same step again as with a loss of nan."""
    last = Path(HydraConfig.get().runtime.output_dir, "checkpoints", "last")
    with contextlib.suppress(FileNotFoundError):
        return not isinstance(error, ArithmeticError) and (is_full_disk(error) or last.stat().st_mtime > started)
    return False


def _print_resume_command() -> None:
    overrides = [f"{RUN_FOLDER}={HydraConfig.get().runtime.output_dir}", "resume=auto"]
    print(f"to resume: {resume_command(sys.argv, overrides)}", file=sys.stderr)


def _write_traceback() -> str:
    """Append the current traceback to the job's log file; return the path as " (traceback: PATH)"."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            with contextlib.suppress(OSError), open(handler.baseFilename, "a") as file:
                file.write(hide_secrets(traceback.format_exc()))
                return f" (traceback: {os.path.relpath(handler.baseFilename)})"
    return ""


def is_expected(error: BaseException) -> bool:
    """Whether a user can fix the cause, so that one line is enough."""
    return isinstance(error, EXPECTED) or bool(KILLED_WORKER.search(str(error)))


def format_error(error: BaseException) -> str:
    """The message of an exception in one line, without passwords, and without Hydra's hint to add a key with +."""
    text = str(error) or str(error.__cause__ or "") or type(error).__name__
    if found := KILLED_WORKER.search(text):
        rank = re.match(r"(rank \d+: )?", text)[0]
        return (
            f"{rank}a process that loads data {found[1].replace('is killed', 'was killed')}, most likely because the "
            "memory was full; resume with a lower dataset.num_workers, or start a run with a lower "
            "dataset.batch_size or dataset.max_duration"
        )
    text = re.split(r"\n *(?:To append to|Config search path|Search path|See https)", text)[0]
    return hide_secrets(" ".join(text.split()))

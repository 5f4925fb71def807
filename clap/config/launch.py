"""Runs a task under Hydra: checks the command line first, and reports expected errors in one line on stderr."""

import contextlib
import functools
import inspect
import logging
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from clap.config.overrides import VERSION_BASE, check_overrides
from clap.config.ran import restore_config

# Errors that a user can fix; any other exception is a bug and keeps its traceback.
EXPECTED = (ValueError, OSError, ImportError, BrokenExecutor, HydraException, OmegaConfBaseException, yaml.YAMLError)

Task = Callable[[DictConfig], Any]
RunJob = Callable[[Task, DictConfig], Any]


def launch(
    task: Task,
    *,
    config_name: str,
    config_path: str = "conf",
    run_job: RunJob | None = None,
    store_options: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Check the command line, then run a task under Hydra, as `hydra.main` does.

    An expected error prints one line on stderr and exits with status 1, Ctrl-C with 130. The traceback is written to
    the job's log file, and to stderr with HYDRA_FULL_ERROR=1. Under -m, a failed job prints its line and the sweep
    continues. After Ctrl-C, a task whose config has the key `resume` prints the command that resumes it.

    Args:
        task: a function of the composed config, or one decorated with `hydra.main`; it imports slow packages itself.
        config_path: the folder of the yamls, relative to the file that defines the task.
        run_job: runs the task for a job of a sweep with Hydra callbacks; by default the task is called directly.
        store_options: adds options of config groups that depend on the command line, which is its argument.
    """
    config_dir = Path(inspect.getfile(inspect.unwrap(task))).resolve().parent / config_path
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises exceptions instead of printing its own report
    run = hydra.main(version_base=VERSION_BASE, config_path=str(config_dir), config_name=config_name)
    try:
        if store_options is not None:
            store_options(sys.argv[1:])
        check_overrides(sys.argv[1:], config_dir=config_dir, config_name=config_name)
        run(_report_failure(task, run_job, show_traceback=show_traceback))()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except EXPECTED as error:
        if show_traceback:
            raise
        sys.exit(f"error: {format_error(error)}")


def resume_command(argv: Sequence[str], overrides: Sequence[str]) -> str:
    """The command of `argv` with additional overrides, which replace those of the same keys."""
    script, *arguments = argv
    keys = tuple(f"{override.partition('=')[0]}=" for override in overrides)
    arguments = [argument for argument in arguments if not argument.startswith(keys)]
    together = (i for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-"))
    first = next(together, len(arguments))  # flags are before or after all overrides
    return shlex.join(["python", script, *arguments[:first], *overrides, *arguments[first:]])


def _report_failure(task: Task, run_job: RunJob | None, *, show_traceback: bool) -> Task:
    """Wrap the task: log the traceback of a failure, and print an expected error in one line on stderr.

    A single run exits with SystemExit; under -m, Hydra receives the exception and runs the other jobs.
    """

    @functools.wraps(task)
    def run(config: DictConfig) -> Any:
        job = HydraConfig.get()
        try:
            has_callbacks = job.mode == RunMode.MULTIRUN and job.callbacks
            return run_job(task, config) if run_job and has_callbacks else task(config)
        except KeyboardInterrupt:
            if job.mode == RunMode.RUN and "resume" in config:
                overrides = [f"hydra.run.dir={job.runtime.output_dir}", "resume=auto"]
                print(f"to resume: {resume_command(sys.argv, overrides)}", file=sys.stderr)
            raise
        except Exception as error:
            log = _write_traceback()
            if job.mode == RunMode.MULTIRUN:
                name = f"job {job.job.num} ({job.job.override_dirname})"
                print(f"error: {name}: {format_error(error)}{log}", file=sys.stderr)
                if job.callbacks:
                    return math.nan
            elif isinstance(error, EXPECTED) and not show_traceback:
                sys.exit(f"error: {format_error(error)}{log}")
            raise
        finally:
            restore_config(Path(job.runtime.output_dir))

    return run


def _write_traceback() -> str:
    """Append the current traceback to the job's log file; return the path as " (traceback: PATH)"."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            with contextlib.suppress(OSError), open(handler.baseFilename, "a") as file:
                traceback.print_exc(file=file)
                return f" (traceback: {os.path.relpath(handler.baseFilename)})"
    return ""


def format_error(error: BaseException) -> str:
    """The message of an exception in one line, without Hydra's hint to add a key with +."""
    text = str(error) or str(error.__cause__ or "") or type(error).__name__
    return " ".join(re.split(r"\n *(?:To append to|Config search path|Search path|See https)", text)[0].split())

"""Runs one job of a sweep in the process of a launcher: locks it, skips it if finished, resumes it if interrupted.

This module imports no sweeper: Hydra reloads its plugins at start-up, and `clap.study.sweep` patches one of them.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clap.config.launch import format_error
from clap.config.output_folder import SWEEP_FOLDER
from clap.log_lines import name_job
from clap.run_folder import append_changed, git_commit, own_folder
from clap.study.job import FINISHED, PRUNED, Job, Pruned, job_tags, read_job
from clap.study.result_config import (
    check_job_unchanged,
    check_same_data,
    digest_data,
    has_checkpoint,
    read_result_config,
)
from clap.training.interrupt import end_with_parent

log = logging.getLogger(__name__)


def run_job(task: Callable[[DictConfig], Any], config: DictConfig) -> float | None:
    """Run one job of a sweep unless it is finished; return nan if another process is running it.

    An unfinished job resumes from its `last` checkpoint. Exceptions are recorded in job.json and re-raised.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    name_log_lines(job_tags()[0] or folder.name)
    with end_with_parent(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(own_folder(folder, resume="auto", advice=f"set another {SWEEP_FOLDER}"))
        except BlockingIOError:
            log.warning("%s: skipped, another process is running it", folder.name)
            return math.nan
        job = Job(folder, job_tags()[0] or folder.name, status="running", config=read_result_config(config))
        before, earlier = read_job(folder), []
        is_finished = before is not None and before.status in (FINISHED, PRUNED)
        job.data = digest_data(config, reread=not is_finished)
        if before and (is_finished or has_checkpoint(folder)):
            check_job_unchanged(before, job)
            earlier = before.commits or ["unknown"]
        if is_finished:
            unknown = "" if before.data else "; its data was not recorded, and is not compared"
            log.info("%s: skipped, already %s%s", job.name, before.status, unknown)
            return before.value
        job.commits = append_changed(earlier, git_commit(Path(__file__).parent))
        return run_locked(task, config, job)


def name_log_lines(job: str) -> None:
    """Put the name of a job in front of its lines on the screen, which the launcher's processes share."""
    for handler in logging.getLogger().handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            name_job(job, handler)


def run_locked(task: Callable[[DictConfig], Any], config: DictConfig, job: Job) -> float | None:
    """Run a job whose folder is locked, and record its outcome."""
    # MLflow takes two seconds to import, and train.py imports this file.
    from clap.study.job_tracking import delete_lost_runs, track_failure

    if config.get("resume", "") is None:
        config = OmegaConf.merge(config, {"resume": "auto"})
    job.write()
    try:
        check_same_data(job)
        delete_lost_runs(config.tracking, job.folder)
        job.value = task(config)
        job.status = FINISHED
    except Pruned as error:
        job.status, job.value = PRUNED, error.value
        log.info("%s: pruned %s", job.name, error)
    except Exception as error:
        job.status, job.error = "failed", format_error(error)
        track_failure(config.tracking, job)
        raise
    finally:
        job.write()
    return job.value

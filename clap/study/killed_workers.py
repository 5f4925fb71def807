"""Sweeps on joblib in which a worker process is killed, as by the system when the memory is full.

joblib then ends all workers and raises. The jobs that were running resume one at a time, each alone in a worker, so
that a job whose worker is killed again fails alone; then the other jobs run as before.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf, open_dict

from clap.study.job import read_job
from clap.study.job_tracking import end_run

log = logging.getLogger(__name__)
Launch = Callable[[Launcher, Sequence[Sequence[str]], int], Sequence[JobReturn]]
KILLED = (
    "its process was killed, most likely because the memory was full; lower dataset.batch_size, dataset.num_workers or "
    "dataset.max_duration, or run fewer jobs at once with hydra.launcher.n_jobs"
)


def outlive_killed_workers(launcher: type[Launcher], tracking: Mapping[str, Any]) -> None:
    """Make a launcher fail only the job whose worker is killed, instead of the sweep.

    Args:
        tracking: options of the Tracker of the jobs.
    """
    launch = getattr(launcher.launch, "__wrapped__", launcher.launch)  # of an earlier sweep in this process

    @functools.wraps(launch)
    def launch_again(
        self: Launcher, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        try:
            return launch(self, job_overrides, initial_job_idx)
        except BrokenExecutor:
            folders = [find_folder(self, job, number) for number, job in enumerate(job_overrides, initial_job_idx)]
            num_started = max((i for i, folder in enumerate(folders, 1) if read_job(folder)), default=0)
            if not num_started:
                raise
        log.warning("a worker was killed; the jobs that it interrupted resume one at a time, then the others run")
        returns = []
        for i, job in enumerate(job_overrides[:num_started]):
            returns += launch_alone(launch, self, job, initial_job_idx + i, folder=folders[i], tracking=tracking)
        rest = job_overrides[num_started:]
        return [*returns, *(launch_again(self, rest, initial_job_idx + num_started) if rest else [])]

    launcher.launch = launch_again


def launch_alone(
    launch: Launch, launcher: Launcher, job: Sequence[str], number: int, *, folder: Path, tracking: Mapping[str, Any]
) -> Sequence[JobReturn]:
    """Run one job, which has no effect if it is finished; record a failure if its worker is killed."""
    try:
        return launch(launcher, [job], number)
    except BrokenExecutor:
        record = read_job(folder)
        record.status, record.error = "failed", KILLED
        record.write()
        end_run(tracking, record, "FAILED")
        log.warning("%s: failed, %s", record.name, KILLED)
        result = JobReturn(status=JobStatus.COMPLETED)
        result.return_value = math.nan
        return [result]


def find_folder(launcher: Launcher, job: Sequence[str], number: int) -> Path:
    """The folder that Hydra gives a job."""
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(job))
    with open_dict(config):
        config.hydra.job.num = number
    return Path(config.hydra.sweep.dir, OmegaConf.select(config, "hydra.sweep.subdir"))

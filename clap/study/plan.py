"""Estimates the cost of a study before it runs: its jobs, their hours and their downloads.

Nothing is downloaded. The duration of a job is the mean of the finished jobs of its cell; without one, a few training
steps are timed, or for a large model, the floating-point operations are counted on the meta device.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from clap.atomic import read_json
from clap.config.compose import compose_config, find_conf_dir
from clap.config.overrides import VERSION_BASE, check_overrides
from clap.config.result_settings import update_settings
from clap.run_folder import COST
from clap.study.factors import (
    FOLD,
    REPEATS,
    SEED,
    Repeat,
    Study,
    find_factors,
    load_study,
    parse_overrides,
    parse_study,
)
from clap.study.job import Job, name_job, read_jobs
from clap.study.result_config import read_result_config
from clap.study.statistics import MIN_FOLDS, MIN_SEEDS
from clap.text_table import format_minutes, to_markdown


@dataclass
class PlannedJob:
    """A job, its seconds of training and validation (None if unknown), and the basis of the estimate."""

    name: str
    seconds: float | None
    basis: str
    finished: bool = False


@dataclass
class Plan:
    """The jobs of a study, and the files that this machine lacks."""

    study: Study
    jobs: list[PlannedJob] = field(default_factory=list)
    missing: dict[str, None] = field(default_factory=dict)  # an ordered set

    def markdown(self) -> str:
        """A table of jobs, the remaining hours next to the budget, and the downloads."""
        remaining = [job for job in self.jobs if not job.finished]
        known = [job.seconds for job in remaining if job.seconds is not None]
        hours = f"{sum(known) / 3600:.2f} h"
        if len(known) < len(remaining):
            unknown = len(remaining) - len(known)
            hours += f" and {unknown} job{'s' * (unknown > 1)} of unknown duration"
        budget = "none" if self.study.minutes is None else f"{self.study.minutes / 60:.2f} h"
        rows = [[job.name, format_minutes(job.seconds), job.basis] for job in self.jobs]
        lines = [
            to_markdown([["job", "minutes", "estimate"], *rows]),
            f"finished: {len(self.jobs) - len(remaining)} of {len(self.jobs)} jobs, in {self.study.folder}",
            f"remaining: {hours}, one job after the other; budget: {budget}",
            f"missing: {'' if self.missing else 'nothing'}".rstrip(),
            *(f"- {item}" for item in self.missing),
        ]
        if len(self.study.seeds) < MIN_SEEDS and len(self.study.folds) < MIN_FOLDS:
            lines.append(f"seeds: {', '.join(self.study.seeds)}; fewer than {MIN_SEEDS} give no intervals and no tests")
        return "\n".join(lines)


def make_plan(name: str, overrides: Sequence[str] = ()) -> Plan:
    """Plan the study conf/experiment/<name>.yaml with these overrides.

    Raises:
        ValueError: the study does not exist, or an override is wrong.
    """
    study, swept, fixed = compose_study(name, overrides)
    groups = [path.name for path in find_conf_dir().iterdir()]
    plan, finished = Plan(study), [job for job in read_jobs(Path(study.folder)) if not job.problem]
    repeated = REPEATS if study.folds else [SEED]
    for cell in study.cells():
        first = {**cell, FOLD: study.folds[0]} if study.folds else cell
        lines = [*fixed, *(f"{key}={level}" for key, level in first.items())]
        config = compose_config([f"experiment={name}", *lines])
        durations = {
            Repeat(*(str(job.config[key]) for key in repeated)): read_seconds(job)
            for job in finished
            if is_same_cell(job, config, ignore=repeated)
        }
        missing, seconds, basis = [], None, ""
        if set(study.repeats()) - durations.keys():
            missing, seconds, basis = estimate_job(config, lines, list(durations.values()))
        plan.missing |= dict.fromkeys(missing)
        for repeat in study.repeats():
            levels = {
                key: level for key, level in {**cell, FOLD: repeat.fold, SEED: repeat.seed}.items() if key in swept
            }
            job = PlannedJob(name_job(levels, groups=groups), seconds, basis)
            if repeat in durations:
                job = PlannedJob(job.name, 0.0, f"finished in {format_minutes(durations[repeat])} min", finished=True)
            plan.jobs.append(job)
    return plan


def compose_study(name: str, lines: Sequence[str]) -> tuple[Study, list[str], list[str]]:
    """The study as `train.py -m` runs it with these overrides, its swept keys, and the overrides of every job."""
    load_study(name)  # raises if it is not a study
    command = ["--cfg", "job", "-m", f"experiment={name}", *lines]
    check_overrides(command, config_dir=find_conf_dir(), config_name="config")
    with initialize_config_dir(str(find_conf_dir()), version_base=VERSION_BASE):
        config = compose("config", [f"experiment={name}"], return_hydra_config=True)
        swept = list(find_factors(config.hydra.sweeper.params, lines))
        fixed = {o.key_or_group: o.input_line for o in parse_overrides(None, lines) if o.key_or_group not in swept}
        own = [line for key, line in fixed.items() if key.split(".")[0] in ("hydra", "study", SEED)]
        config = compose("config", [f"experiment={name}", *own], return_hydra_config=True)
        return parse_study(config, lines), swept, list(fixed.values())


def is_same_cell(job: Job, config: Mapping[str, Any], *, ignore: Sequence[str]) -> bool:
    """Whether a job ran with this config, apart from ignored keys and settings that do not change the result."""
    settings = json.loads(json.dumps(read_result_config(OmegaConf.create(config)), default=str))
    ignored = dict.fromkeys(ignore)
    return update_settings(job.config) | ignored == update_settings(settings) | ignored


def read_seconds(job: Job) -> float:
    """Seconds that a finished job trained and validated."""
    return read_json(job.folder / COST)["seconds"]


def estimate_job(
    config: dict[str, Any], lines: Sequence[str], durations: Sequence[float]
) -> tuple[list[str], float | None, str]:
    """The missing files of a job, its seconds (None if unknown), and the basis of the estimate.

    Args:
        lines: the overrides in `config`; the groups that they set are not read from init_from.
        durations: seconds of the finished jobs of the cell.
    """
    from clap.study import downloads, estimate  # imports torch and transformers, so after the checks

    try:
        config = config | downloads.read_initial(config, lines)
    except FileNotFoundError as error:
        return [f"init_from: {error}"], None, f"unknown: {error}"
    missing = list(downloads.list_missing(config))
    if durations:
        jobs = "1 finished job" if len(durations) == 1 else f"{len(durations)} finished jobs"
        return missing, statistics.mean(durations), f"measured: {jobs} of this cell"
    return missing, *estimate.estimate(config, ready=not missing)

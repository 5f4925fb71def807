"""A search over hyper-parameters: Optuna draws configurations, and each is a job of the sweep.

Optuna calls a drawn configuration a trial. A trial belongs to the job folder that is named by its parameters: a search
that was killed finds it there again, and a configuration that is drawn twice runs once.
"""

import logging
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import optuna
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from clap.atomic import write_json
from clap.config.output_folder import SWEEP_FOLDER
from clap.config.overrides import resolve_value
from clap.config.search_space import (
    Choice,
    Range,
    SearchSettings,
    Space,
    count_configurations,
    list_configurations,
    read_settings,
    read_space,
)
from clap.processes import read_processes
from clap.run_folder import SEARCH, TRIAL
from clap.study.factors import list_levels, parse_overrides
from clap.study.job import FINISHED, PRUNED, Job, read_job, wait_for_jobs
from clap.study.killed_workers import find_folder
from clap.study.search_report import find_best, write_report
from clap.study.search_storage import cut_truncated_line, make_pruner, open_storage

if TYPE_CHECKING:
    from hydra_plugins.clap_search import OptunaSweeper

log = logging.getLogger(__name__)
MOST_REPEATS = 20  # draws of known configurations in a row, after which the sampler has no new one
DUPLICATE = "duplicate_of"  # attribute of a trial: the number of another one with its parameters
SAMPLERS = {"tpe": TPESampler, "random": RandomSampler, "cmaes": CmaEsSampler}


def run_search(sweeper: "OptunaSweeper", arguments: Sequence[str]) -> None:
    """Run the trials that a search lacks, in batches, and report their values to Optuna.

    Args:
        arguments: the overrides of the command line.

    Raises:
        ValueError: the folder has a search over another space, or a trial has no validation.
    """
    config, folder = sweeper.config, Path(sweeper.config.hydra.sweep.dir)
    overrides = parse_overrides(sweeper.params, arguments)
    fixed = {item.key_or_group: item.get_value_element_as_str() for item in overrides if not item.is_sweep_override()}
    chosen = {item.key_or_group: list_levels(item)[0] for item in overrides if not item.is_interval_sweep()}
    first = sweeper.hydra_context.config_loader.load_sweep_config(config, format_overrides(chosen))
    space = read_space(overrides, lambda key: resolve_value(first, key))
    settings = read_settings(OmegaConf.to_container(config.hydra.sweeper, resolve=True))
    OmegaConf.save(config, folder / "multirun.yaml")
    search, number = Search(settings, space, folder), 0
    while trials := search.next_trials(settings.n_jobs or count_workers(config.hydra.launcher)):
        wait_for_jobs(folder)  # of a search whose parent was killed a moment ago
        jobs = [format_overrides({**dict.fromkeys(space), **fixed, **trial.params}) for trial in trials]
        sweeper.validate_batch_is_legal(jobs)
        folders = [find_folder(sweeper.launcher, job, index) for index, job in enumerate(jobs, number)]
        for trial, job_folder in zip(trials, folders, strict=True):
            search.write_trial(trial, job_folder)
        sweeper.launcher.launch(jobs, initial_job_idx=number)
        for trial, job_folder in zip(trials, folders, strict=True):
            search.tell(trial, read_job(job_folder))
        number += len(jobs)
    report_search(sweeper, search, {**dict.fromkeys(space), **fixed}, folder)


def report_search(sweeper: "OptunaSweeper", search: "Search", overrides: Mapping[str, Any], folder: Path) -> None:
    """Write the report of a search.

    Args:
        overrides: of a trial; those that are searched have no value.
    """
    trials = list(search.configurations().values())
    best, best_folder, command = find_best(trials), None, ""
    if best is not None:
        job = format_overrides({**overrides, **best.params})
        best_folder = find_folder(sweeper.launcher, job, 0)
        is_named = not {"-m", "--multirun"} & set(sys.argv)  # an experiment whose mode is MULTIRUN
        script = [*read_processes().command(), sys.argv[0]]
        command = shlex.join([*script, *job, *(["hydra.mode=RUN"] if is_named else [])])
    write_report(search.study, trials, search.space, folder=folder / SEARCH, command=command, best_folder=best_folder)


def format_overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def count_workers(launcher: Mapping[str, Any]) -> int:
    """The jobs that a launcher runs at once, as far as its options say."""
    return joblib.effective_n_jobs(launcher.get("n_jobs") or 1)


class Search:
    """The trials of a search, in a storage that outlives the process.

    Args:
        folder: of the sweep.

    Raises:
        ValueError: the storage has a search over another space, or of another folder.
        ConnectionError: the storage cannot be opened.
    """

    def __init__(self, settings: SearchSettings, space: Space, folder: Path) -> None:
        self.settings, self.space = settings, space
        self.distributions = {key: to_distribution(domain) for key, domain in space.items()}
        cut_truncated_line(folder)
        self.study = create_study(settings, folder)
        check_same_search(self.study, describe_space(space), folder)
        self.failed = [trial for trial in self.configurations().values() if trial.state == TrialState.FAIL]

    def configurations(self) -> dict[tuple, FrozenTrial]:
        """The latest trial of each configuration; a trial that was killed before it was drawn has none."""
        trials = self.study.get_trials(deepcopy=False)
        whole = [trial for trial in trials if trial.params.keys() == self.space.keys()]
        return {self.identify(trial): trial for trial in whole if DUPLICATE not in trial.user_attrs}

    def identify(self, trial: FrozenTrial | Trial) -> tuple:
        return tuple(trial.params[key] for key in self.space)

    def next_trials(self, count: int) -> list[FrozenTrial | Trial]:
        """Up to `count` trials to run: those of a killed search, then those that failed in it, then new ones."""
        known = self.configurations()
        trials = [trial for trial in known.values() if trial.state == TrialState.RUNNING][:count]
        while self.failed and len(trials) < count:
            trials.append(self.ask_for(self.failed.pop(0).params))
        limit = min(self.settings.n_trials, count_configurations(self.space))
        while len(trials) < count and len(known) < limit:
            trial = self.draw(known)
            if trial is None:
                log.warning("the sampler draws no new configuration; the search ends after %d", len(known))
                break
            known[self.identify(trial)] = trial
            trials.append(trial)
        return trials

    def draw(self, known: Mapping[tuple, FrozenTrial | Trial]) -> Trial | None:
        """A new configuration; None if the sampler repeats known ones."""
        for _ in range(MOST_REPEATS):
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = RoundedSampler(make_sampler(self.settings, number), self.space)
            trial = self.study.ask(self.distributions)
            same = known.get(self.identify(trial))
            if same is None:
                return trial
            trial.set_user_attr(DUPLICATE, same.number)
            self.study.tell(trial, state=TrialState.FAIL)
        for values in list_configurations(self.space):
            if values not in known:
                return self.ask_for(dict(zip(self.space, values, strict=True)))
        return None

    def ask_for(self, params: Mapping[str, Any]) -> Trial:
        """A trial of these parameters."""
        self.study.enqueue_trial(dict(params))
        return self.study.ask(self.distributions)

    def write_trial(self, trial: FrozenTrial | Trial, job_folder: Path) -> None:
        """Write trial.json, from which the job opens its trial."""
        job_folder.mkdir(parents=True, exist_ok=True)
        where = {"storage": self.settings.storage, "study": self.study.study_name, "number": trial.number}
        write_json(job_folder / TRIAL, where | {"pruner": self.settings.pruner})

    def tell(self, trial: FrozenTrial | Trial, job: Job | None) -> None:
        """Finish a trial with the outcome of its job.

        Raises:
            ValueError: the job has not validated.
        """
        if job is not None and job.status == PRUNED:
            self.study.tell(trial.number, state=TrialState.PRUNED)
            return
        is_finished = job is not None and job.status == FINISHED and not job.problem
        if is_finished and job.value in (None, -math.inf):
            raise ValueError(
                f"{job.folder}: the job has no metric of a validation, which a search maximizes; give a dataset with a "
                "validation split"
            )
        if is_finished and math.isfinite(job.value):
            self.study.tell(trial.number, job.value)
        else:
            self.study.tell(trial.number, state=TrialState.FAIL)


def create_study(settings: SearchSettings, folder: Path) -> Study:
    """The study of a sweep folder in its storage, with the trials that it has.

    Raises:
        ConnectionError: the storage cannot be opened.
    """
    try:
        return optuna.create_study(
            study_name=settings.study_name or ("search" if settings.storage is None else str(folder)),
            storage=open_storage(settings.storage, folder),
            pruner=make_pruner(settings.pruner),
            direction="maximize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ValueError) as error:
        raise ConnectionError(
            f"hydra.sweeper.storage={settings.storage} cannot be opened ({str(error).splitlines()[0]}); give an "
            "address such as sqlite:///optuna.db, or null for a file in the sweep folder"
        ) from error


def to_distribution(domain: Choice | Range) -> BaseDistribution:
    """A domain in the terms of Optuna."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.is_integer:
        return IntDistribution(domain.low, domain.high, step=domain.step or 1, log=domain.log)
    return FloatDistribution(domain.low, domain.high, step=domain.step, log=domain.log)


def describe_space(space: Space) -> dict[str, list]:
    """A space as plain data, as the storage keeps it."""
    return {
        key: list(domain.values) if isinstance(domain, Choice) else [domain.low, domain.high, domain.step, domain.log]
        for key, domain in space.items()
    }


def check_same_search(study: Study, space: Mapping[str, list], folder: Path) -> None:
    """Record the space and the folder of a new search; reject other ones than those of an earlier one."""
    before = study.user_attrs
    for name, now in {"space": space, "folder": str(folder.resolve())}.items():
        is_moved = name == "folder" and isinstance(study._storage, optuna.storages.JournalStorage)
        if name in before and before[name] != now and not is_moved:
            raise ValueError(
                f"{folder} has a search with the {name} {before[name]}, now it is {now}; restore it, or start another "
                f"search with {SWEEP_FOLDER}=FOLDER (in a storage of your own, with hydra.sweeper.study_name=NAME too)"
            )
        study.set_user_attr(name, now)


def make_sampler(settings: SearchSettings, number: int) -> BaseSampler:
    """The sampler of one trial, with a seed of its own: a search that resumes draws what it would have drawn."""
    (seed,) = np.random.SeedSequence([settings.seed, number]).generate_state(1)
    extra = {"warn_independent_sampling": False} if settings.sampler == "cmaes" else {}  # it draws choices at random
    return SAMPLERS[settings.sampler](seed=int(seed), **extra)


class RoundedSampler(BaseSampler):
    """Rounds the numbers that a sampler draws: what is trained, stored and in the names of jobs is the same number."""

    def __init__(self, sampler: BaseSampler, space: Space) -> None:
        self.sampler, self.space = sampler, space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self.sampler.sample_relative(study, trial, search_space)
        return {name: self.round(name, value) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        drawn = self.sampler.sample_independent(study, trial, param_name, param_distribution)
        return self.round(param_name, drawn)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def round(self, name: str, value: Any) -> Any:
        domain = self.space[name]
        return domain.round(value) if isinstance(domain, Range) else value

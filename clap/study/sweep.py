"""Sweeps: one MLflow parent run for all jobs, finished jobs are kept, and a leaderboard at the end.

Hydra calls `Sweep` before and after a multirun; each job runs `clap.study.run_job` in the process of its launcher. They
share only files in the sweep folder: sweep.json describes the sweep, <job>/job.json the state of a job.
"""

import atexit
import contextlib
import logging
import math
import shlex
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clap.atomic import read_json, write_atomic, write_json
from clap.config.launch import format_error
from clap.config.output_folder import SWEEP_FOLDER, resume_command
from clap.config.overrides import name_folder
from clap.config.search_space import SWEEPER
from clap.config.secrets import hide_secrets
from clap.config.values import LOCAL_KEYS, single_key
from clap.run_folder import HISTORY, LOCK, LOCK_SECONDS, SEARCH, SEARCH_SUMMARY, SWEEP_FILE, is_running, read_history
from clap.study.factors import (
    GROUPS,
    REPEATS,
    find_factors,
    list_cells,
    list_levels,
    one_factor_at_a_time,
    parse_overrides,
    parse_study,
    read_question,
)
from clap.study.job import Job, job_levels, read_jobs, read_overrides, wait_for_jobs
from clap.study.job_tracking import end_run
from clap.study.killed_workers import outlive_killed_workers
from clap.study.leaderboard import Leaderboard
from clap.study.means import Means
from clap.study.result_config import check_fixed_overrides, check_settings_unchanged, read_result_config
from clap.tracking.description import NOTE, describe
from clap.tracking.store import DEFAULT_STORE
from clap.tracking.tracker import Tracker, recorded_run

log = logging.getLogger(__name__)
LONGEST_TABLE = 20  # rows of a table on the screen
SEARCH_LOCK = "search.lock"
UNRECORDED = (*LOCAL_KEYS, "dataset.metadata")  # not among the fixed overrides of a sweep; may change when it resumes
split_grid = BasicSweeper.split_arguments  # parsed overrides -> batches of jobs, a job is a list of key=value


def split_one_at_a_time(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
    """The first job of Hydra's grid, and the jobs that differ from it in one factor."""
    (jobs,) = split_grid(overrides, None)
    selected = one_factor_at_a_time([job_levels(job) for job in jobs])
    lines = [[f"{key}={value}" for key, value in job.items()] for job in selected]
    return list(BasicSweeper.split_overrides_to_chunks(lines, max_batch_size))


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit on an exception in a callback, which Hydra only logs as a warning."""
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {format_error(error)}")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class Sweep(Callback):
    """Hydra's callback around a multirun: the parent run before the first job, the leaderboard after the last."""

    ended = False

    def __getstate__(self) -> dict:
        return {}  # launchers pickle callbacks for their processes, which do not need this one

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the store and the parent run before any job; reject a folder that contains another sweep."""
        with exit_on_error():
            self.start(config)

    def start(self, config: DictConfig) -> None:
        hydra, lines = config.hydra, list(config.hydra.overrides.task)
        self.folder, self.tracking = Path(hydra.sweep.dir), config.tracking
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_search = hydra.sweeper._target_ == SWEEPER
        if self.is_search:
            check_search(config, lines)
            self.lock = own_search(self.folder)
        study = parse_study(config, lines)
        self.study = name = study.name if study else None
        self.sweeper = [line for line in hydra.overrides.hydra if line.startswith(("hydra/sweeper", "hydra.sweeper"))]
        self.lines, self.question = lines, find_question(hydra.runtime.config_sources, name)
        self.metrics = study.metrics if study else []
        set_design(study.design if study else "grid", sweeper=hydra.sweeper._target_)
        outlive_killed_workers(get_class(hydra.launcher._target_), config.tracking)
        params = hydra.sweeper.get("params")
        factors = find_factors(params, lines)
        choices = hydra.runtime.choices
        self.groups, self.swept = list(choices), list(factors)
        swept = self.swept
        self.constants = {key: choices[key] for key in GROUPS if key in choices and key not in swept}
        unrecorded = {*swept, *UNRECORDED}
        parsed = [(item, {item.key_or_group, single_key(item.key_or_group)}) for item in parse_overrides(params, lines)]
        others = [item for item, keys in parsed if not keys & unrecorded]
        fixed = sorted(override.input_line for override in others)
        settings = read_result_config(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
        with FileLock(self.folder / LOCK):
            check_fixed_overrides(self.folder, fixed)
            if OmegaConf.to_container(hydra.sweep)["subdir"].startswith("${folder_name:"):
                rename_jobs(self.folder, swept)
            check_settings_unchanged(self.folder, settings, swept)
            self.tracker = Tracker(
                **config.tracking,
                run_name=name or name_sweep(swept, self.folder),
                run_id=recorded_run(self.folder, config.tracking.uri),
                run_dir=self.folder,
                tags={"role": "sweep", "study": name, "swept": ", ".join(swept), "fixed": " ".join(fixed)}
                | ({"folds": ", ".join(study.folds)} if study and study.folds else {})
                | {NOTE: self.describe()},
            )
            values = {"study": name, "run_id": self.tracker.run_id, "swept": swept, "fixed": fixed}
            values |= {"settings": settings, "configurations": self.list_configurations(config, factors)}
            write_json(self.folder / SWEEP_FILE, values)
        atexit.register(self.close)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the launcher stops its workers
        log.info("sweep folder %s; to resume after a stop: %s", self.folder, self.resume_command())

    def list_configurations(self, config: DictConfig, factors: Mapping[str, Override]) -> list[Mapping[str, str]]:
        """The configurations of the sweep in order, which gives each its color; those that it had before come first.

        A sweeper that chooses values, and not all combinations, adds a configuration when its first job starts.
        """
        known = read_json(self.folder / SWEEP_FILE).get("configurations", [])
        if config.hydra.sweeper._target_ != BasicSweeperConf._target_:
            return known
        levels = {key: list_levels(override) for key, override in factors.items() if key not in REPEATS}
        design = config.study.design if self.study else "grid"
        return [*known, *(cell for cell in list_cells(levels, design) if cell not in known)]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Wait for jobs of other processes, then write the leaderboard and close the parent run."""
        with exit_on_error():
            wait_for_jobs(self.folder)
            self.finish()

    def read_configurations(self) -> list[dict[str, str]]:
        """The configurations in order; without those of an earlier start that swept other keys."""
        keys = {key for key in self.swept if key not in REPEATS}
        return [cell for cell in read_json(self.folder / SWEEP_FILE)["configurations"] if cell.keys() == keys]

    def describe(self, result: str = "") -> str:
        """The description of the sweep in MLflow."""
        what = f"Compares {', '.join(f'**{key}**' for key in self.swept)}."
        command = ["python", "train.py", "-m", *self.sweeper, *self.lines]
        return describe(what, command=command, folder=self.folder, result=result, remark=self.question)

    def finish(self) -> None:
        jobs = read_jobs(self.folder)
        board = Leaderboard(jobs, self.metrics, by_validation=self.is_search)
        means = Means(jobs, metrics=board.metrics, swept=self.swept, groups=self.groups)
        report = (self.folder / SEARCH / SEARCH_SUMMARY).read_text(encoding="utf-8") if self.is_search else ""
        tables = {"leaderboard.csv": board.csv(), "leaderboard.md": board.markdown()}
        tables |= {"means.csv": means.csv(), "means.md": means.markdown()} if means.rows else {}
        with FileLock(self.folder / LOCK):
            for name, text in tables.items():
                write_atomic(self.folder / name, text.encode())
                self.tracker.log_artifact(self.folder / name)
            if self.is_search:
                self.tracker.log_artifact(self.folder / SEARCH)
            self.tracker.log_metrics(replace_stale(self.folder, board.best() | means.best()), step=0)
            texts = filter(None, (report, means.markdown(), board.markdown()))
            self.tracker.set_tags({NOTE: self.describe("\n".join(texts).strip())})
            self.tracker.log_view(
                swept=self.swept,
                metrics=board.metrics,
                counts=board.counts,
                configurations=self.read_configurations(),
                constants=self.constants,
                summary="\n\n".join([best, board.markdown()]) if (best := means.summary()) else board.summary(),
            )
            self.end_runs("FAILED" if self.has_failed(jobs) else "FINISHED")
        self.ended = True
        print("", board.markdown(longest=LONGEST_TABLE), sep="\n")
        if means.rows:
            print(means.markdown(longest=LONGEST_TABLE))
        if report:
            print(report)
        print(self.folder / "leaderboard.csv", self.tracker.view_hint, sep="\n")
        if self.study and self.tracker.uri:
            print(f"table, figures and lineage: {self.report_command()}")
        if failures := self.failures():
            message = f"not finished: {', '.join(failures)}; the same command runs only the unfinished jobs"
            sys.exit(f"error: {message}") if self.has_failed(jobs) else log.warning(message)

    def has_failed(self, jobs: Sequence[Job]) -> bool:
        """Whether a job has failed, in a search whether all have: some of its configurations may be impossible."""
        return (all if self.is_search else any)(job.is_unfinished for job in jobs)

    def close(self) -> None:
        """At exit, if the sweep is not finished: close its open runs and print the command that resumes it."""
        if not self.ended:
            with FileLock(self.folder / LOCK):
                self.end_runs("KILLED")
            print(f"to resume: {self.resume_command()}", file=sys.stderr)

    def end_runs(self, status: str) -> None:
        """Close the parent run, and the runs of killed jobs."""
        for job in read_jobs(self.folder):
            if job.status == "running" and not is_running(job.folder):
                end_run(self.tracking, job, "KILLED")
        self.tracker.finish(status)

    def report_command(self) -> str:
        uri = hide_secrets(self.tracking.uri)
        store = [] if uri == DEFAULT_STORE else ["--uri", uri]
        return shlex.join(["python", "experiments/report.py", self.study, *store])

    def resume_command(self) -> str:
        return resume_command(sys.argv, [f"{SWEEP_FOLDER}={self.folder}"])

    def failures(self) -> list[str]:
        """Unfinished jobs and their problems; jobs with the same problem in one item."""
        names = defaultdict(list)
        for job in read_jobs(self.folder):
            if job.is_unfinished:
                names[job.problem].append(job.name)
        return [f"{', '.join(some)} ({problem})" for problem, some in names.items()]


def replace_stale(folder: Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a parent run, with nan for those that it had before a resume and has no more: MLflow deletes none."""
    history = read_history(folder / HISTORY) if (folder / HISTORY).is_file() else []
    earlier = {name for entry in history for name in entry["metrics"]}
    return dict.fromkeys(sorted(earlier - metrics.keys()), math.nan) | metrics


def check_search(config: DictConfig, lines: Sequence[str]) -> None:
    """Reject a study, and repeats of a training, in a search."""
    if config.get("study") is not None:
        raise ValueError(
            "a study compares the configurations that it lists, and hydra/sweeper=optuna draws its own; remove one"
        )
    for override in parse_overrides(config.hydra.sweeper.get("params"), lines):
        if override.key_or_group in REPEATS and override.is_sweep_override():
            raise ValueError(
                f"{override.input_line}: a search would choose the {override.key_or_group} with the best luck; "
                "give one value, and repeat the best trial in a sweep"
            )


def own_search(folder: Path) -> BaseFileLock:
    """Lock a folder for the search of this process, until it ends.

    Raises:
        BlockingIOError: another process runs the search of this folder.
    """
    try:
        return FileLock(folder / SEARCH_LOCK).acquire(timeout=LOCK_SECONDS).lock
    except Timeout:
        raise BlockingIOError(
            f"{folder}: another process runs this search; wait for it, or run several trials at once with "
            "hydra/launcher=joblib"
        ) from None


def name_sweep(swept: Sequence[str], folder: Path) -> str:
    """`audio_encoder x text_encoder 2026-01-31 10-20-30`, by what is swept and the folder."""
    keys = [key for key in swept if key not in REPEATS] or swept or ["seed"]
    return f"{' x '.join(key.rpartition('.')[2] for key in keys)} {folder.parent.name} {folder.name}"


def find_question(sources: Sequence[DictConfig], study: str | None) -> str:
    """The question of a study, in the yaml of the first config folder that has it; empty without a study."""
    yamls = [Path(source.path) / "experiment" / f"{study}.yaml" for source in sources if source.schema == "file"]
    return next((read_question(path) for path in yamls if path.is_file()), "")


def set_design(design: str, *, sweeper: str) -> None:
    """Make Hydra's basic sweeper generate the jobs of a design."""
    if design == "one_at_a_time" and sweeper != BasicSweeperConf._target_:
        raise ValueError(f"study.design={design} requires hydra/sweeper=basic, not {sweeper}; remove the other sweeper")
    BasicSweeper.split_arguments = staticmethod(split_one_at_a_time if design == "one_at_a_time" else split_grid)


def rename_jobs(folder: Path, swept: Collection[str]) -> None:
    """Name the job folders of an earlier version, which had all overrides in their names, by what is swept."""
    for job in read_jobs(folder):
        overrides = parse_overrides(None, read_overrides(job.folder))
        named = sorted(item.input_line for item in overrides if item.key_or_group in swept)
        target = folder / name_folder(",".join(named))
        if named and target != job.folder and not target.exists() and not is_running(job.folder):
            log.info("%s is renamed to %s", job.folder, target.name)
            job.folder.rename(target)

"""Sweeps: one MLflow parent over all jobs, what is finished stays, a leaderboard at the end.

Hydra calls `Sweep` around a multirun and `run_job` is what each job runs, in whatever process its launcher starts.
They share files in the sweep's folder alone: sweep.json says what the sweep is, <job>/job.json how a job stands.
"""

import atexit
import contextlib
import csv
import io
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from clap.config import flatten
from clap.study import SEED, keep_near_first, parse_overrides

log = logging.getLogger(__name__)

SWEEP_FILE, JOB_FILE, LOCK = "sweep.json", "job.json", ".lock"
FREE_KEYS = ("resume", "tracking", "device", "study", "dataset.root", "dataset.num_workers")  # no part of a result
SHOWN = (  # last parts of the metrics in the table on screen
    "zero_shot/accuracy",
    "text_to_audio/recall_at_1",
    "text_to_audio/recall_at_10",
    "audio_to_text/recall_at_1",
)
POLL_SECONDS = 2.0
split_grid = BasicSweeper.split_arguments  # parsed overrides -> batches of jobs, each a list of lines key=value


@dataclass
class Job:
    """How one job of a sweep stands; kept as job.json in its folder."""

    folder: Path
    name: str
    status: str  # running | finished | failed
    config: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    error: str | None = None

    def write(self) -> None:
        values = {key: value for key, value in vars(self).items() if key != "folder"}
        write_json(self.folder / JOB_FILE, values)

    def is_held(self) -> bool:
        """Is a process running it now?"""
        try:
            with FileLock(self.folder / LOCK, blocking=False):
                return False
        except Timeout:
            return True

    def read_json(self, name: str) -> dict[str, float]:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}


def read_jobs(sweep_dir: Path) -> list[Job]:
    """All jobs of a sweep that were ever started, by folder."""
    paths = sorted(sweep_dir.glob(f"*/{JOB_FILE}"))
    return [Job(path.parent, **json.loads(path.read_text())) for path in paths]


def read_sweep(sweep_dir: Path) -> dict[str, Any] | None:
    path = sweep_dir / SWEEP_FILE
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2, default=str) + "\n")
    temporary.replace(path)


def run_job(task: Callable[[DictConfig], Any], config: DictConfig) -> float:
    """Run one job of a sweep, unless it is finished or another process has it; nan stands for no result.

    An unfinished job goes on from its `last` checkpoint. What it raises is kept in job.json, and the sweep goes on.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, blocking=False):
            return _run_locked(task, config, folder)
    except Timeout:
        log.warning("%s: another process is running it", folder.name)
        return math.nan


def _run_locked(task: Callable[[DictConfig], Any], config: DictConfig, folder: Path) -> float:
    settings = dict(flatten(OmegaConf.to_container(config, resolve=True)))
    settings = {key: value for key, value in settings.items() if not key.startswith(FREE_KEYS)}
    settings = {key: value for key, value in settings.items() if not isinstance(value, dict | list)}
    job = Job(folder, name_job(), status="running", config=settings)
    if (folder / JOB_FILE).exists():
        before = Job(folder, **json.loads((folder / JOB_FILE).read_text()))
        check_same(before, settings)
        if before.status == "finished":
            log.info("%s: finished before, kept", job.name)
            return before.value
    job.write()
    if "resume" in config and config.resume is None:
        config.resume = "auto"
    try:
        job.value = float(task(config))
        job.status = "finished"
    except Exception as error:
        job.status, job.error = "failed", " ".join(str(error).split()) or type(error).__name__
        track_failure(config.tracking, job)
        raise
    finally:
        job.write()
    return job.value


def track_failure(settings: Mapping[str, Any], job: Job) -> None:
    """A run for a job that failed before it had one, so that the sweep in MLflow lacks none."""
    from clap.tracking import Tracker, recorded_run

    if recorded_run(job.folder, settings["uri"]) is None:
        with contextlib.suppress(ConnectionError):
            name, tags = job_tags()
            tags |= {"role": "train", "error": job.error}
            Tracker(**settings, run_name=name, run_dir=job.folder, tags=tags).finish("FAILED")


def check_same(before: Job, config: Mapping[str, Any]) -> None:
    """Refuse to go on with a job whose yamls have changed since."""
    for key in sorted(before.config.keys() | config.keys()):
        old, new = before.config.get(key), config.get(key)
        if old != new:
            raise ValueError(
                f"{before.folder} was started with {key}={old}, now it is {new}; put it back, delete the folder to "
                "run the job anew, or give hydra.sweep.dir=FOLDER for another sweep"
            )


def name_job() -> str:
    """What differs from job to job, as `htsat_nano-gpt2_nano-s0`."""
    hydra = HydraConfig.get()
    swept = (read_sweep(Path(hydra.sweep.dir)) or {}).get("swept", [])
    values = {key: value for key, value in job_levels(hydra.overrides.task).items() if key in swept}
    parts = [
        value if key in hydra.runtime.choices else f"{key.split('.')[-1]}={value}" for key, value in values.items()
    ]
    return "-".join(part.replace(f"{SEED}=", "s") for part in parts) or f"job{hydra.job.num}"


def job_levels(overrides: Sequence[str]) -> dict[str, str]:
    """A job's overrides as {key: value}, the seed last."""
    values = dict(line.split("=", 1) for line in overrides)
    return {key: values[key] for key in sorted(values, key=lambda key: key == SEED)}


def job_tags() -> tuple[str | None, dict[str, str]]:
    """Name and tags for the MLflow run of the present job; (None, {}) outside of a sweep."""
    hydra = HydraConfig.get()
    sweep = read_sweep(Path(hydra.sweep.dir)) if hydra.mode == RunMode.MULTIRUN else None
    if sweep is None:
        return None, {}
    swept = {key: value for key, value in job_levels(hydra.overrides.task).items() if key in sweep["swept"]}
    tags = {"mlflow.parentRunId": sweep["run_id"], "study": sweep["study"], "job": name_job()}
    return tags["job"], tags | swept


def split_one_at_a_time(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
    """Of Hydra's grid the first job, and those that differ from it in one factor."""
    (jobs,) = split_grid(overrides, None)
    near = keep_near_first([job_levels(job) for job in jobs])
    kept = [[f"{key}={value}" for key, value in job.items()] for job in near]
    return list(BasicSweeper.split_overrides_to_chunks(kept, max_batch_size))


class Leaderboard:
    """The jobs of a sweep, best first by its leading metric, those without a result last."""

    def __init__(self, jobs: Sequence[Job], metrics: Sequence[str] = ()) -> None:
        quality = {job.name: job.read_json("metrics.json") for job in jobs}
        known = sorted({name for values in quality.values() for name in values if name.startswith("test/")})
        self.metrics = list(metrics) or [name for end in SHOWN for name in known if name.endswith(end)]
        self.unfinished = [job for job in jobs if job.status != "finished"]
        costs = ("seconds", "clips_per_second", "peak_memory_bytes", "parameters")
        self.rows = [
            {"job": job.name, "status": job.status}
            | {name: quality[job.name].get(name) for name in [*self.metrics, *known]}
            | {name: job.read_json("cost.json").get(name) for name in costs}
            | {"error": job.error, "folder": job.folder.name}
            for job in jobs
        ]
        lead = self.metrics[0] if self.metrics else None
        self.rows.sort(key=lambda row: (-math.inf if row.get(lead) is None else row[lead], row["job"]), reverse=True)

    def csv(self) -> str:
        """Every test metric, cost, error and folder."""
        if not self.rows:
            return ""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Job, the metrics that count, minutes; a job without a result says why."""
        header = ["job", *(shorten(name) for name in self.metrics), "minutes"]
        lines = [header, ["---"] * len(header)]
        for row in self.rows:
            values = [row[name] for name in self.metrics]
            cells = ["-" if value is None else f"{value:.3f}" for value in values]
            minutes = "-" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
            failed = "" if row["status"] == "finished" else f" ({row['status']}: {row['error'] or 'not finished'})"
            lines.append([row["job"] + failed, *cells, minutes])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shorten(metric: str) -> str:
    """A metric's name without its split, as a column's head."""
    return metric.split("/", 1)[1].replace("/", " ")


class Sweep(Callback):
    """Hydra's callback around a multirun: the parent run before the first job, the leaderboard after the last."""

    running: "Sweep | None" = None  # the one of this process

    def __init__(self) -> None:
        self.tracker: Any = None
        self.folder = Path()
        self.metrics: list[str] = []
        self.ended = False

    def __getstate__(self) -> dict:
        return {}  # launchers copy callbacks into their processes, which do not need this one

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the store, before any job does, and the parent run in it; refuse a folder that holds another sweep."""
        try:
            self.start(config)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")  # Hydra turns exceptions of callbacks into warnings, but lets this one pass

    def start(self, config: DictConfig) -> None:
        from clap.tracking import Tracker, recorded_run

        Sweep.running = self
        self.folder = Path(config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        study = config.hydra.runtime.choices.get("experiment") if config.get("study") else None
        self.metrics = list(config.study.metrics) if study else []
        one_at_a_time = study and config.study.design == "one_at_a_time"
        BasicSweeper.split_arguments = staticmethod(split_one_at_a_time if one_at_a_time else split_grid)
        params = config.hydra.sweeper.get("params")
        overrides = parse_overrides(params, OmegaConf.to_container(config.hydra.overrides.task))
        swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
        fixed = sorted(override.input_line for override in overrides if not override.is_sweep_override())
        with FileLock(self.folder / LOCK):
            before = read_sweep(self.folder)
            self.check_same(before, fixed)
            run_id = recorded_run(self.folder, config.tracking.uri)
            self.tracker = Tracker(
                config.tracking.uri,
                config.tracking.experiment,
                run_name=study or f"sweep {self.folder.parent.name} {self.folder.name}",
                run_id=run_id,
                run_dir=self.folder,
                tags={"role": "sweep", "study": study, "swept": ", ".join(swept), "fixed": " ".join(fixed)},
            )
            write_json(
                self.folder / SWEEP_FILE,
                {"study": study, "run_id": self.tracker.run_id, "swept": swept, "fixed": fixed},
            )
        atexit.register(self.close)
        log.info("sweep folder %s; to go on after a stop: %s", self.folder, self.continue_command())

    def check_same(self, before: Mapping[str, Any] | None, fixed: list[str]) -> None:
        """More values of a factor join a sweep; other fixed settings would make it two."""
        if before and (changed := sorted(set(before["fixed"]) ^ set(fixed))):
            raise ValueError(
                f"{self.folder} holds a sweep with {' '.join(before['fixed']) or 'no fixed settings'}; it differs in "
                f"{', '.join(changed)}; give hydra.sweep.dir=FOLDER for another one"
            )

    def continue_command(self) -> str:
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("hydra.sweep.dir=")]
        return shlex.join(["python", *sys.argv[:1], *arguments, f"hydra.sweep.dir={self.folder}"])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Wait for jobs that other processes run, then write the leaderboard and close the parent run."""
        self.wait_for_others()
        self.ended = True
        jobs = read_jobs(self.folder)
        board = Leaderboard(jobs, self.metrics)
        (self.folder / "leaderboard.csv").write_text(board.csv())
        (self.folder / "leaderboard.md").write_text(board.markdown())
        for name in ("leaderboard.csv", "leaderboard.md"):
            self.tracker.log_artifact(self.folder / name)
        self.tracker.finish("FINISHED" if not board.unfinished else "FAILED")
        print(f"\n{board.markdown()}\n{self.folder / 'leaderboard.csv'}; {self.tracker.view_hint(board.metrics)}")

    def wait_for_others(self) -> None:
        waited: set[Path] = set()
        while held := [job for job in read_jobs(self.folder) if job.status == "running" and job.is_held()]:
            if {job.folder for job in held} != waited:
                waited = {job.folder for job in held}
                log.info("waiting for jobs that another process runs: %s", ", ".join(job.name for job in held))
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """At exit: if the sweep did not come to its end, close the parent run and say how to go on."""
        if not self.ended:
            self.tracker.finish("KILLED")
            print(f"to go on: {self.continue_command()}", file=sys.stderr)

    def failures(self) -> list[str]:
        """What did not finish, with its reason."""
        return [f"{job.name} ({job.error or 'stopped'})" for job in read_jobs(self.folder) if job.status != "finished"]

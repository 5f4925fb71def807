"""Reads a study from MLflow: its cells with their runs, scores, curves and lineage."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clap.config.result_settings import changes_result, update_settings
from clap.config.secrets import hide_secrets
from clap.evaluation.results import RecordedEvaluation, read_results
from clap.study.factors import FOLD, REPEATS, SEED, Repeat, Study
from clap.study.scores import Column, RunScores, make_column
from clap.tracking.store import MlflowClient, MlflowException, error_summary, open_store, resolve_uri, store_path
from clap.tracking.store import Run as MlflowRun

FINISHED = "FINISHED"
TRAIN_LOSS = "train/loss"
DIGEST_LENGTH = 12
AMBIGUOUS_LEVELS = ("none", "null", "true", "false")  # levels that are unclear without their factor


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        levels: factor of the study -> level.
        data: split -> name and digest of the dataset.
        params: its composed config, {dotted key: value}.
        folder: name of the job's folder in the sweep folder.
    """

    id: str
    name: str
    status: str
    repeat: Repeat
    levels: dict[str, str]
    error: str | None = None
    commit: str | None = None
    machine: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    folder: str | None = None

    @property
    def outcome(self) -> str:
        """The status of the run as text, with the error of a failed run."""
        words = {FINISHED: "finished", "FAILED": "failed", "KILLED": "stopped"}.get(self.status, "not finished")
        return f"{words}: {self.error}" if self.status == "FAILED" and self.error else words

    @property
    def config_digest(self) -> str:
        """Digest of the settings that change the result, except seed and fold; equal for all runs of a cell."""
        settings = update_settings(self.params)
        groups = {key.split(".")[0] for key in settings if "." in key}  # a group's option is not a setting
        ignored = {*REPEATS, *groups}
        kept = {key: value for key, value in settings.items() if key not in ignored and changes_result(key)}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]


@dataclass
class Cell:
    """One configuration of a study.

    Attributes:
        runs: seed and fold -> its newest finished run, else its newest run, None if there is none.
    """

    levels: dict[str, str]
    runs: dict[Repeat, Run | None]

    @property
    def finished(self) -> list[Run]:
        """The finished runs."""
        return [run for run in self.runs.values() if run is not None and run.status == FINISHED]

    @property
    def seeds(self) -> list[str]:
        """All seeds."""
        return list(dict.fromkeys(repeat.seed for repeat in self.runs))

    @property
    def complete(self) -> list[str]:
        """Seeds with a result: all of their folds are finished."""
        lacking = {repeat.seed for repeat in self.gaps}
        return [seed for seed in self.seeds if seed not in lacking]

    @property
    def gaps(self) -> dict[Repeat, str]:
        """Seed and fold -> why it has no result, for those without one."""
        outcomes = {repeat: "missing" if run is None else run.outcome for repeat, run in self.runs.items()}
        finished = {run.repeat for run in self.finished}
        return {repeat: outcome for repeat, outcome in outcomes.items() if repeat not in finished}

    def replicates(self, seeds: Sequence[str] | None = None) -> list[list[str]]:
        """Ids of the runs of each complete seed, one for each fold; of the given seeds or of all."""
        chosen = [seed for seed in self.complete if seeds is None or seed in seeds]
        return [[run.id for run in self.finished if run.repeat.seed == seed] for seed in chosen]


@dataclass
class StudyRuns:
    """A study and the runs of its sweep.

    Attributes:
        sweep_id: id of the parent run.
        fixed: overrides that all jobs of the sweep share, as {key: value}.
        cells: the baseline first.
        others: runs that are not counted: of no cell, or replaced by a newer run of the same seed.
        curves: metric -> run id -> steps and values, each (points,).
        chance: metric of a curve -> chance level, the mean over runs; of metrics that have one.
    """

    study: Study
    sweep_id: str
    fixed: dict[str, str]
    cells: list[Cell]
    others: list[Run]
    columns: list[Column] = field(default_factory=list)
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> list[Run]:
        """The finished runs of all cells."""
        return [run for cell in self.cells for run in cell.finished]

    @property
    def num_folds(self) -> int:
        """Number of folds of a cross-validation; 0 without one."""
        return len({repeat.fold for cell in self.cells for repeat in cell.runs} - {None})

    @property
    def has_folds(self) -> bool:
        """Whether each number is that of a cross-validation."""
        return self.num_folds > 0

    @property
    def is_grid(self) -> bool:
        return self.study.design == "grid"

    def name(self, cell: Cell) -> str:
        """The levels of a cell; in a one_at_a_time design, `baseline` or the level that differs from it."""
        first = {} if self.is_grid else self.cells[0].levels
        parts = [self.label(key, level) for key, level in cell.levels.items() if level != first.get(key)]
        return ", ".join(parts) or "baseline"

    def label(self, factor: str, level: str) -> str:
        """`gpt2_nano`, but `batch_size=16` if the level is unclear without its factor."""
        levels = self.study.factors[factor]
        is_clear = "." not in factor and all(name[:1].isalpha() and name not in AMBIGUOUS_LEVELS for name in levels)
        return level if is_clear else f"{shorten_key(factor)}={level}"


def shorten_key(factor: str) -> str:
    """`batch_size` of `dataset.batch_size`."""
    return factor.rsplit(".", 1)[-1]


def read_study_runs(study: Study, uri: str, *, sweep_id: str | None = None) -> StudyRuns:
    """Read the data of a report from the newest sweep of a study, or from the sweep with the given id.

    Raises:
        ValueError: the sweep does not exist, has no finished run, or its runs are not comparable.
        OSError: the store does not exist or does not respond.
    """
    client, uri = open_existing_store(uri, study.name), hide_secrets(uri)
    try:
        return add_scores(client, find_runs(client, study, uri=uri, sweep_id=sweep_id))
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {uri} does not respond ({error_summary(error)}); try again") from error


def add_scores(client: MlflowClient, runs: StudyRuns) -> StudyRuns:
    """Add scores and curves to the runs."""
    check_finished(runs)
    metrics = runs.study.metrics
    with tempfile.TemporaryDirectory() as folder:
        recorded = {run.id: read_evaluations(client, run, Path(folder) / run.id) for run in runs.finished}
    for metric in metrics:
        check_metric_logged(metric, runs.finished)
        scores = {
            run.id: RunScores(run.name, run.metrics[metric], recorded[run.id], run.repeat.fold) for run in runs.finished
        }
        runs.columns.append(make_column(metric, scores))
    for metric in (TRAIN_LOSS, metrics[0].replace("test/", "val/", 1)):
        runs.curves[metric] = {run.id: read_curve(client, run.id, metric) for run in runs.finished}
        protocols = [evaluation.protocol for own in recorded.values() for evaluation in own]
        levels = [level for protocol in protocols if (level := protocol.get("chance", {}).get(metric)) is not None]
        runs.chance |= {metric: sum(levels) / len(levels)} if levels else {}
    return runs


def open_existing_store(uri: str, study: str) -> MlflowClient:
    """Client of an existing store; unlike in training, a missing store is not created."""
    address = resolve_uri(uri)
    advice = f"run the study first, `python train.py -m experiment={study}`, or set --uri to its store"
    if address is None:
        raise ValueError(f"--uri {uri} is not an MLflow store; {advice}")
    if address.startswith("sqlite:") and not store_path(address).is_file():
        raise FileNotFoundError(f"MLflow store {store_path(address).absolute()} does not exist; {advice}")
    return open_store(address)


def find_runs(client: MlflowClient, study: Study, *, uri: str, sweep_id: str | None) -> StudyRuns:
    """The cells of a sweep with their runs, without scores."""
    parent = find_sweep(client, study.name, uri=uri, sweep_id=sweep_id)
    fixed = split_overrides(parent.data.tags.get("fixed", ""))
    found = search_all_runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.role = 'train'")
    has_folds = FOLD in parent.data.tags.get("swept", "").split(", ")
    runs = [make_run(run, study, fixed=fixed, has_folds=has_folds) for run in found]
    seeds = add_found(study.seeds, [run.repeat.seed for run in runs])
    folds = parent.data.tags.get("folds", ", ".join(study.folds)).split(", ")
    folds = add_found(folds, [run.repeat.fold for run in runs]) if has_folds else [None]
    repeats = [Repeat(seed, fold) for seed in seeds for fold in folds]
    cells = [Cell(levels, choose_runs(runs, levels, repeats)) for levels in study.cells()]
    counted = {run.id for cell in cells for run in cell.runs.values() if run is not None}
    others = [run for run in runs if run.id not in counted]
    return StudyRuns(study, parent.info.run_id, fixed, cells, others)


def add_found(declared: Sequence[str], found: Sequence[str]) -> list[str]:
    """The seeds or folds of a yaml, and those that only the runs have."""
    return [*declared, *sorted(set(found) - set(declared), key=lambda number: (len(number), number))]


def find_sweep(client: MlflowClient, study: str, *, uri: str, sweep_id: str | None) -> MlflowRun:
    """The parent run of a sweep: the newest one, or that with the given id."""
    parents = search_all_runs(client, f"tags.role = 'sweep' and tags.study = '{study}'")
    if not parents:
        raise ValueError(
            f"{uri} has no sweep of {study}; run `python train.py -m experiment={study}`, or set --uri to another store"
        )
    known = {parent.info.run_id: parent for parent in parents}
    if sweep_id is not None and sweep_id not in known:
        raise ValueError(f"--sweep {sweep_id} is not a sweep of {study} in {uri}; its sweeps: {', '.join(known)}")
    return parents[-1] if sweep_id is None else known[sweep_id]


def search_all_runs(client: MlflowClient, filter_string: str) -> list[MlflowRun]:
    """All runs of a store that match a filter, the newest last."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    page = client.search_runs(experiments, filter_string)
    runs = list(page)
    while page.token:
        page = client.search_runs(experiments, filter_string, page_token=page.token)
        runs += page
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def split_overrides(line: str) -> dict[str, str]:
    """`a=1 b=[x, y]` -> {key: value}; a word without `=` continues the value before it."""
    words: list[str] = []
    for word in line.split():
        if "=" in word or not words:
            words.append(word)
        else:
            words[-1] += f" {word}"
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def make_run(run: MlflowRun, study: Study, *, fixed: Mapping[str, str], has_folds: bool) -> Run:
    """Convert a run of MLflow; keys that the sweep did not vary come from its fixed overrides or its config."""
    tags, params = run.data.tags, run.data.params
    known = {**params, **fixed, **tags}
    data = {}
    for used in run.inputs.dataset_inputs:
        split = next((tag.value for tag in used.tags if tag.key == "mlflow.data.context"), "data")
        data[split] = f"{used.dataset.name} {used.dataset.digest}"
    return Run(
        run.info.run_id,
        tags.get("job") or run.info.run_name,
        run.info.status,
        Repeat(known.get(SEED, study.seeds[0]), known.get(FOLD) if has_folds else None),
        levels={factor: known.get(factor, "?") for factor in study.factors},
        error=" ".join(tags["error"].split()) if "error" in tags else None,
        commit=tags.get("git_commit"),
        machine=tags.get("machine"),
        data=data,
        params=params,
        metrics=run.data.metrics,
        folder=tags.get("folder"),
    )


def choose_runs(runs: Sequence[Run], levels: Mapping[str, str], repeats: Sequence[Repeat]) -> dict[Repeat, Run | None]:
    """Seed and fold -> the newest finished run of a cell, else its newest run; `runs` are sorted, the newest last."""
    own = [run for run in runs if run.levels == levels]
    best = {run.repeat: run for run in sorted(own, key=lambda run: run.status == FINISHED)}  # sorting is stable
    return {repeat: best.get(repeat) for repeat in repeats}


def check_finished(runs: StudyRuns) -> None:
    """Reject a sweep without a finished run, or in a cross-validation without a seed whose folds are all finished."""
    if any(cell.complete for cell in runs.cells):
        return
    outcomes = [outcome for cell in runs.cells for outcome in cell.gaps.values() if outcome != "missing"]
    first = f", the first {outcomes[0]}" if outcomes else ""
    what = "configuration with a finished run of every fold" if runs.finished else "finished run that matches its yaml"
    raise ValueError(
        f"sweep {runs.sweep_id} of {runs.study.name} has no {what} ({len(outcomes)} "
        f"unfinished{first}); resume it, or choose another with --sweep RUN_ID"
    )


def check_metric_logged(metric: str, runs: Sequence[Run]) -> None:
    """Reject a metric that a finished run did not log."""
    for run in runs:
        if metric not in run.metrics:
            known = sorted(name for name in run.metrics if name.startswith("test/"))
            raise ValueError(
                f"run {run.name} has no metric {metric}; choose study.metrics from {', '.join(known) or 'none'}, "
                "or add the evaluation that logs it"
            )


def read_evaluations(client: MlflowClient, run: Run, folder: Path) -> list[RecordedEvaluation]:
    """The evaluations among the artifacts of a run, downloaded to a new folder."""
    folder.mkdir()
    try:
        return read_results(Path(client.download_artifacts(run.id, "evaluation", str(folder))))
    except (MlflowException, OSError) as error:
        raise FileNotFoundError(
            f"run {run.name} ({run.id}) lacks its artifacts evaluation/protocol.json and *.npz "
            f"({error_summary(error)}), which define its metrics; delete the run in MLflow and resume the sweep"
        ) from error


def read_curve(client: MlflowClient, run_id: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values (points,) of a metric, sorted by step; of a repeated step the last value."""
    history = sorted(client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)
    values = {point.step: point.value for point in history}
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])

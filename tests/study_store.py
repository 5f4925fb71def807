"""Synthetic runs of a study without training: in memory, and in an MLflow store as a sweep logs them."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clap.evaluation.ranks import RetrievalRanks
from clap.evaluation.results import Evaluation, RecordedEvaluation, hash_protocol, write_results
from clap.evaluation.retrieval_metrics import retrieval_metrics, retrieval_scores
from clap.study.factors import FOLD, Repeat, Study
from clap.study.job import Job, name_job
from clap.study.runs import Cell, Run, StudyRuns
from clap.study.scores import RunScores, make_column
from clap.tracking.tracker import Tracker

LEADING = "test/synthetic/text_to_audio/recall_at_1"
METRICS = [LEADING, "test/synthetic/audio_to_text/mean_average_precision_at_10"]
FACTORS = {"audio_encoder": ["cnn14_nano", "htsat_nano"], "text_encoder": ["roberta_nano", "gpt2_nano"]}
NUM_CLIPS, CAPTIONS_PER_CLIP, NUM_STEPS = 20, 3, 40
MACHINE = "2 CPU cores, torch 2.11.0"
COMMON_TAGS = {"git_commit": "0123456789abcdef0123456789abcdef01234567-dirty", "machine": MACHINE}


def make_study(name: str, **changes: Any) -> Study:
    """A study with two by two cells and three seeds by default."""
    values = {"factors": FACTORS, "seeds": ["0", "1", "2"], "metrics": METRICS, "design": "grid"}
    return Study(name, minutes=None, folder=f"outputs/sweeps/{name}", **values | changes)


def make_results(
    quality: float,
    seed: int,
    protocol: Mapping[str, Any] | None = None,
    *,
    fold: str | None = None,
    chance: float | None = None,
) -> dict[str, Evaluation]:
    """Retrieval results of twenty clips, as an evaluator returns them; `quality` is the share of queries at rank 1.

    Args:
        fold: the tested fold, which has clips of its own.
        chance: chance level of the leading metric.
    """
    generator = np.random.default_rng(seed)
    text_clip = np.arange(NUM_CLIPS).repeat(CAPTIONS_PER_CLIP)
    ranks = [
        torch.from_numpy(1 + (generator.random(len(text_clip)) > quality) * generator.integers(1, 15, len(text_clip)))
        for _ in range(2)
    ]
    ranks = RetrievalRanks(torch.from_numpy(text_clip), torch.arange(len(text_clip)), *ranks)
    metrics, scores = (
        {f"test/synthetic/{name}": value for name, value in found.items()}
        for found in (retrieval_metrics(ranks), retrieval_scores(ranks))
    )
    protocol = {
        "dataset": "synthetic",
        "split": "test",
        "clips": f"{NUM_CLIPS} of {NUM_CLIPS}",
        "audio_manifest": "0123456789abcdef",
        "definition": 1,
        **(protocol or {}),
    }
    per_query = {
        "text_clip": text_clip,
        "text_to_audio_rank": ranks.text_to_audio.numpy(),
        "audio_to_text_rank": ranks.audio_to_text.numpy(),
        "audio_to_text_best_rank": ranks.best_text.numpy(),
    }
    clip_ids = [f"clip {i}" if fold is None else f"clip {fold}-{i}" for i in range(NUM_CLIPS)]
    protocol |= {} if fold is None else {"audio_manifest": f"audio of fold {fold}"}
    chances = {} if chance is None else {LEADING: chance}
    protocol = {"hash": hash_protocol(protocol), "chance": chances, **protocol}
    return {"retrieval": Evaluation(metrics, clip_ids, scores, per_query, protocol, chances)}


def record(result: Evaluation) -> RecordedEvaluation:
    """An evaluation as it is read back from its files."""
    return RecordedEvaluation(tuple(result.metrics), np.array(result.clip_ids), result.scores, result.protocol)


def make_runs(
    study: Study,
    *,
    quality: float = 0.3,
    gap: float = 0.05,
    without: Mapping[tuple[int, str], str] | None = None,
    chance: float | None = None,
) -> StudyRuns:
    """The runs of a sweep in which each cell is better than the one before.

    Args:
        quality: of the first cell.
        without: (index of a cell, seed, or fold in a cross-validation) -> error of the failed run, or "" for a missing
            run.
        chance: chance level of the leading metric.
    """
    repeats = [Repeat(seed, fold) for seed in study.seeds for fold in study.folds or [None]]
    cells = [Cell(levels, dict.fromkeys(repeats)) for levels in study.cells()]
    found: dict[str, Evaluation] = {}
    for place, cell in enumerate(cells):
        for repeat in repeats:
            seed, fold = repeat
            run_id, error = f"id{place}{seed}{fold or ''}", (without or {}).get((place, fold or seed))
            if error is None:
                number = 100 * place + int(seed) + 10 * int(fold or 0)
                results = make_results(quality + gap * place, seed=number, fold=fold, chance=chance)
                found[run_id] = results["retrieval"]
            if error != "":
                cell.runs[repeat] = make_run(run_id, cell.levels, repeat, place, error, found.get(run_id))
    runs = StudyRuns(study, "sweepid", {}, cells, [])
    known = {run.id: run for run in runs.finished}
    recorded = {run_id: [record(result)] for run_id, result in found.items()}
    for metric in study.metrics:
        numbers = {run_id: result.metrics[metric] for run_id, result in found.items()}
        scores = {
            run_id: RunScores(run.name, numbers[run_id], recorded[run_id], run.repeat.fold)
            for run_id, run in known.items()
        }
        runs.columns.append(make_column(metric, scores))
    for metric in ("train/loss", LEADING.replace("test", "val")):
        curves = {run_id: np.linspace(4, int(run_id[2]), NUM_STEPS) for run_id in found}
        runs.curves[metric] = {run_id: (np.arange(NUM_STEPS), values) for run_id, values in curves.items()}
    return runs


def make_run(
    run_id: str, levels: Mapping[str, str], repeat: Repeat, place: int, error: str | None, result: Evaluation | None
) -> Run:
    cost = {"cost/seconds": 120.0 + 30 * (place % 4), "cost/parameters": 2e6}
    return Run(
        run_id,
        "-".join([*levels.values(), *([f"fold{repeat.fold}"] if repeat.fold else []), f"s{repeat.seed}"]),
        "FAILED" if error else "FINISHED",
        repeat,
        dict(levels),
        error=error,
        commit="0123456789abcdef",
        machine=MACHINE,
        metrics=result.metrics | cost if result else {},
    )


@dataclass
class StudyStore:
    """Writes sweeps and runs to a copy of an empty SQLite store in a folder."""

    folder: Path
    empty: Path
    count: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.empty, self.uri)

    @property
    def uri(self) -> str:
        return str(self.folder / "mlflow.db")

    def start(self, name: str, tags: Mapping[str, str]) -> Tracker:
        self.count += 1
        return Tracker(self.uri, "clap", run_name=name, run_dir=self.folder / f"run {self.count}", tags=tags)

    def add_sweep(self, study: Study, fixed: str = "") -> str:
        """Add a parent run without children; return its id."""
        swept = ", ".join([*study.factors, "seed", *([FOLD] if study.folds else [])])
        tags = {"role": "sweep", "study": study.name, "swept": swept, "fixed": fixed}
        with self.start(study.name, tags) as tracker:
            return tracker.run_id

    def add_run(
        self,
        sweep_id: str,
        levels: Mapping[str, str],
        seed: str,
        *,
        fold: str | None = None,
        quality: float = 0.5,
        error: str | None = None,
        protocol: Mapping[str, Any] | None = None,
        minutes: float = 2.0,
        shift: float = 0.0,
    ) -> str:
        """Add the run of a job, failed if `error` is given; return its id.

        Args:
            shift: added to the metrics, so that they differ from the evaluation files.
        """
        name = "-".join([*levels.values(), f"s{seed}"])
        name = name if fold is None else f"{name}-fold{fold}"
        tags = {**levels, "seed": seed} | ({} if fold is None else {FOLD: fold})
        tags |= {"role": "train", "mlflow.parentRunId": sweep_id, "job": name}
        tracker = self.start(name, tags | COMMON_TAGS)
        tracker.log_params({"seed": seed, "optimizer": {"lr": 0.001}, "tracking": {"uri": self.uri}})
        for split in ("train", "test"):
            tracker.log_dataset("synthetic", digest=f"{split}0123456789", split=split, num_clips=NUM_CLIPS)
        if error is not None:
            tracker.set_tags({"error": error})
            tracker.finish("FAILED")
            return tracker.run_id
        results = make_results(quality, seed=self.count, protocol=protocol, fold=fold)
        self.log_curves(tracker, quality)
        tracker.log_metrics({name: value + shift for name, value in results["retrieval"].metrics.items()}, NUM_STEPS)
        cost = {"seconds": 60 * minutes, "clips_per_second": 123.4, "parameters": 2e6, "peak_memory_bytes": 1.5e9}
        tracker.log_metrics({f"cost/{name}": value for name, value in cost.items()}, step=NUM_STEPS)
        folder = tracker.history_path.parent / "evaluation"
        write_results(folder, results)
        tracker.log_artifact(folder)
        tracker.finish()
        return tracker.run_id

    def log_curves(self, tracker: Tracker, quality: float) -> None:
        noise = np.random.default_rng(self.count).normal(0, 0.1, NUM_STEPS)
        for step in range(NUM_STEPS):
            tracker.log_metrics({"train/loss": 4 * np.exp(-quality * step / 10) + noise[step]}, step=step)
            if step % 10 == 9:
                name = LEADING.replace("test", "val")
                tracker.log_metrics({name: quality * step / NUM_STEPS + 0.2 * noise[step]}, step=step)


def add_job(
    sweep: Path,
    levels: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
    *,
    results: Mapping[str, Evaluation] | None = None,
    status: str = "finished",
    **values: Any,
) -> Job:
    """A job in a sweep folder as it is after its end, with metrics or the results of evaluators."""
    name = name_job(levels, groups=FACTORS)
    job = Job(sweep / f"folder-{name}", name, status, config={"seed": 0} | dict(levels), **values)
    (job.folder / ".hydra").mkdir(parents=True)
    (job.folder / ".hydra" / "overrides.yaml").write_text(
        "".join(f"- {key}={level}\n" for key, level in levels.items())
    )
    job.write()
    if results:
        write_results(job.folder / "evaluation", results)
        metrics = {name: value for result in results.values() for name, value in result.metrics.items()}
    if metrics:
        (job.folder / "metrics.json").write_text(json.dumps(metrics))
        (job.folder / "cost.json").write_text('{"seconds": 90.0}')
    return job

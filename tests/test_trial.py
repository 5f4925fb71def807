"""A job of a search reports its validations, and ends where the pruner decides so."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import DictConfig

from clap.config.search_space import Range, SearchSettings
from clap.study.job import FINISHED, PRUNED, Job, Pruned, read_job
from clap.study.run_job import run_job
from clap.study.search import Search
from clap.study.trial import follow_trial
from clap.tracking.tracker import Tracker
from tests.test_run_job import job, refuse  # noqa: F401 (job is a fixture)


def start_trials(folder: Path, count: int, **settings: object) -> list[Path]:
    """Start the trials of a search in `folder`; their folders."""
    search = Search(SearchSettings(n_trials=count, **settings), {"lr": Range(0.0, 1.0)}, folder)
    folders = [folder / str(number) for number in range(count)]
    for trial, job_folder in zip(search.next_trials(count), folders, strict=True):
        search.write_trial(trial, job_folder)
    return folders


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_trial_below_the_others_is_pruned(pruner: str, tmp_path: Path):
    search = Search(SearchSettings(n_trials=30, pruner=pruner), {"lr": Range(0.0, 1.0)}, tmp_path)
    for number in range(20):
        (trial,) = search.next_trials(1)
        search.write_trial(trial, tmp_path / str(number))
        report = follow_trial(tmp_path / str(number))
        for step in (1, 2, 3):
            report(10 * step, 0.5 + step / 10, ended=step == 3)
        search.tell(trial, Job(tmp_path, "job", FINISHED, value=0.8))
    for number in range(20, 24):  # hyperband has a bracket that prunes none in the first validation
        (trial,) = search.next_trials(1)
        search.write_trial(trial, tmp_path / str(number))
        report = follow_trial(tmp_path / str(number))
        try:
            report(10, 0.1, ended=False)
        except Pruned as error:
            assert str(error) == "at step 10: 0.1000 is below the validations of other trials"
            assert error.value == 0.1
            return
        search.tell(trial, Job(tmp_path, "job", FINISHED, value=0.1))
    pytest.fail("no trial was pruned")


def test_last_validation_prunes_nothing(tmp_path: Path):
    (folder,) = start_trials(tmp_path, 1, pruner="median")
    report = follow_trial(folder)
    report.report = lambda metric: True
    report(10, 0.1, ended=True)
    with pytest.raises(Pruned):
        report(10, 0.1, ended=False)


def test_resumed_job_continues_the_count_of_validations(tmp_path: Path):
    (folder,) = start_trials(tmp_path, 1, pruner="median")
    follow_trial(folder)(10, 0.1, ended=False)
    report = follow_trial(folder)
    report(20, math.nan, ended=False)
    assert report.trial.storage.get_trial(0).intermediate_values.keys() == {1, 2}


def test_only_a_search_with_a_pruner_follows_its_trials(tmp_path: Path):
    assert follow_trial(tmp_path) is None
    (folder,) = start_trials(tmp_path, 1)
    assert follow_trial(folder) is None


def test_pruned_job_is_not_run_again(job: DictConfig, tmp_path: Path):  # noqa: F811
    def prune(config: DictConfig) -> float:
        raise Pruned("at step 3", value=0.25)

    for task in (prune, refuse):
        assert run_job(task, job) == 0.25
        found = read_job(tmp_path / "job")
        assert (found.status, found.problem, found.is_unfinished) == (PRUNED, PRUNED, False)


def test_trainer_stops_where_its_hook_raises(make_trainer: Callable, tmp_path: Path):
    trainer, calls = make_trainer(epochs=3), []

    def stop(step: int, metric: float, *, ended: bool) -> None:
        calls.append((step, metric, ended))
        if len(calls) == 2:
            raise Pruned("now", value=metric)

    trainer.after_validation = stop
    with pytest.raises(Pruned):
        trainer.fit(tmp_path)
    assert [(step, ended) for step, _, ended in calls] == [(2, False), (4, False)]
    assert calls[1][1] == trainer.validation.metric
    resumed = make_trainer(epochs=3)
    resumed.resume(tmp_path / "checkpoints" / "last")
    calls.clear()
    resumed.after_validation = stop
    resumed.fit(tmp_path)
    assert [(step, ended) for step, _, ended in calls] == [(6, True)]


def test_tracker_keeps_the_status_that_its_body_has_set(sweep_store: Path, tmp_path: Path):
    with pytest.raises(Pruned):
        with Tracker(str(sweep_store), "clap", run_name="a", run_dir=tmp_path / "a") as tracker:
            tracker.finish("KILLED")
            raise Pruned("at step 3", value=0.25)
    found = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert found.info.status == "KILLED" and "error" not in found.data.tags

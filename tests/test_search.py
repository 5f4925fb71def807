"""A search draws configurations, keeps them in its storage, and resumes."""

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from optuna.trial import TrialState
from script import Script
from sweeps import read_board, read_runs, run, statuses, wait_for

from clap.config.search_space import Choice, Range, SearchSettings
from clap.study.job import FINISHED, PRUNED, Job
from clap.study.search import Search, count_workers
from clap.study.search_storage import JOURNAL
from clap.study.sweep import check_search, own_search

LR, ENCODER = Range(1e-5, 1e-1, log=True), Choice(("a", "b"))
SPACE = {"lr": LR, "encoder": ENCODER}


def open_search(folder: Path, space: dict = SPACE, **settings: object) -> Search:
    folder.mkdir(exist_ok=True)
    return Search(SearchSettings(**{"n_trials": 20, **settings}), space, folder)


def run_jobs(search: Search, score: Callable, *, count: int = 1, most: float = math.inf) -> list[dict]:
    """Run at most this number of trials, in batches of `count`; returns the parameters of each."""
    done: list[dict] = []
    while len(done) < most and (trials := search.next_trials(count)):
        for trial in trials:
            value = score(**trial.params)
            job = value if isinstance(value, Job) else Job(Path("job"), "job", FINISHED, value=value)
            search.tell(trial, job)
            done.append(trial.params)
    return done


def score(lr: float, encoder: str = "a") -> float:
    return -((math.log10(lr) + 3) ** 2) - (encoder == "b")


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_search_maximizes(sampler: str, tmp_path: Path):
    search = open_search(tmp_path, sampler=sampler)
    run_jobs(search, score, count=2)
    assert states(search) == ["COMPLETE"] * 20
    assert -1 < search.study.best_value <= 0
    assert 1e-4 < search.study.best_params["lr"] < 1e-2


def test_drawn_numbers_have_few_digits(tmp_path: Path):
    drawn = run_jobs(open_search(tmp_path, {"lr": LR}, sampler="cmaes", n_trials=8), score)
    assert all(params["lr"] == float(f"{params['lr']:.4g}") for params in drawn)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_killed_search_draws_what_it_would_have_drawn(sampler: str, tmp_path: Path):
    whole = run_jobs(open_search(tmp_path / "whole", sampler=sampler, n_trials=14), score)
    killed = open_search(tmp_path / "killed", sampler=sampler, n_trials=14)
    done = run_jobs(killed, score, most=11)
    (running,) = killed.next_trials(1)
    resumed = open_search(tmp_path / "killed", sampler=sampler, n_trials=14)
    assert done + run_jobs(resumed, score) == whole
    assert resumed.study.trials[running.number].state == TrialState.COMPLETE
    assert states(resumed) == ["COMPLETE"] * 14


def test_higher_number_of_trials_continues_a_search(tmp_path: Path):
    run_jobs(open_search(tmp_path, n_trials=3), score)
    assert len(run_jobs(open_search(tmp_path, n_trials=5), score)) == 2


def test_configuration_runs_once(tmp_path: Path):
    search = open_search(tmp_path, {"batch_size": Range(8, 24, 8), "encoder": ENCODER}, n_trials=100)
    drawn = run_jobs(search, lambda batch_size, encoder: batch_size, count=4)
    assert len(drawn) == len({tuple(params.items()) for params in drawn}) == 6


def test_sampler_that_only_repeats_ends_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    search = open_search(tmp_path, {"lr": Range(1.0, 1.0002)}, n_trials=5)
    assert 0 < len(run_jobs(search, lambda lr: lr)) < 5
    assert "the sampler draws no new configuration; the search ends after" in caplog.text


def test_failed_trial_is_retried_by_the_next_command_only(tmp_path: Path):
    search = open_search(tmp_path, n_trials=4)
    failing = iter([math.nan, Job(Path("job"), "job", "failed", error="no data"), 0.5, 0.5])
    drawn = run_jobs(search, lambda **params: next(failing))
    assert len(drawn) == 4 and states(search) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert run_jobs(open_search(tmp_path, n_trials=4), score) == drawn[:2]
    assert run_jobs(open_search(tmp_path, n_trials=4), score) == []


def test_pruned_trial_is_not_run_again(tmp_path: Path):
    pruned = Job(Path("job"), "job", PRUNED)
    search = open_search(tmp_path, n_trials=2)
    run_jobs(search, lambda **params: pruned)
    assert states(search) == ["PRUNED", "PRUNED"]
    assert run_jobs(open_search(tmp_path, n_trials=2), score) == []


def test_job_without_a_validation_stops_the_search(tmp_path: Path):
    with pytest.raises(ValueError, match="has no metric of a validation, which a search maximizes; give a dataset"):
        run_jobs(open_search(tmp_path), lambda **params: -math.inf)


def test_search_over_another_space_is_rejected(tmp_path: Path):
    open_search(tmp_path)
    with pytest.raises(ValueError, match=r"has a search with the space .*restore it, or start another search with"):
        open_search(tmp_path, {"lr": LR})


def test_moved_folder_keeps_its_search(tmp_path: Path):
    run_jobs(open_search(tmp_path / "old", n_trials=2), score)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert run_jobs(open_search(tmp_path / "new", n_trials=2), score) == []


def test_study_of_another_folder_in_a_storage_is_rejected(tmp_path: Path):
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    run_jobs(open_search(tmp_path / "a", storage=storage, study_name="lr", n_trials=2), score)
    assert len(run_jobs(open_search(tmp_path / "a", storage=storage, study_name="lr", n_trials=3), score)) == 1
    with pytest.raises(ValueError, match="has a search with the folder .*hydra.sweeper.study_name=NAME"):
        open_search(tmp_path / "b", storage=storage, study_name="lr")


@pytest.mark.parametrize("storage", ["optuna.db", "sqlite:///no/such/folder/optuna.db"])
def test_storage_that_cannot_be_opened_is_named(storage: str, tmp_path: Path):
    with pytest.raises(ConnectionError, match=f"hydra.sweeper.storage={storage} cannot be opened .*; give an address"):
        open_search(tmp_path, storage=storage)


def test_journal_with_a_truncated_line_is_read(tmp_path: Path):
    run_jobs(open_search(tmp_path, n_trials=2), score)
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert len(run_jobs(open_search(tmp_path, n_trials=4), score)) == 2
    assert len(run_jobs(open_search(tmp_path, n_trials=5), score)) == 1


@pytest.mark.parametrize(("launcher", "count"), [({}, 1), ({"n_jobs": 3}, 3), ({"n_jobs": None}, 1)])
def test_launcher_says_how_many_trials_run_at_once(launcher: dict, count: int):
    assert count_workers(launcher) == count


def test_search_has_one_process(tmp_path: Path):
    lock = own_search(tmp_path)
    with pytest.raises(BlockingIOError, match="another process runs this search; wait for it, or"):
        own_search(tmp_path)
    lock.release()
    own_search(tmp_path).release()


def test_search_over_seeds_folds_or_a_study_is_rejected():
    config = OmegaConf.create({"hydra": {"sweeper": {"params": {"seed": "0,1"}}}, "study": None})
    with pytest.raises(ValueError, match="seed=0,1: a search would choose the seed with the best luck; give one value"):
        check_search(config, [])
    with pytest.raises(ValueError, match="the dataset.test_fold with the best luck"):
        check_search(config, ["seed=0", "dataset.test_fold=1,2"])
    check_search(config, ["seed=3", "lr=interval(0,1)"])
    config.study = {"design": "grid"}
    with pytest.raises(ValueError, match="hydra/sweeper=optuna draws its own; remove one"):
        check_search(config, ["seed=3"])


@pytest.mark.slow
def test_interrupted_search_resumes_with_the_command_that_it_prints(
    sweep_project: Path, sweep_store: Path, tmp_path: Path
):
    sweep = tmp_path / "sweep"
    arguments = [
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "lr=interval(1,5)", f"hydra.sweep.dir={sweep}",
        f"tracking.uri={sweep_store}",
    ]  # fmt: skip
    process = Script(sweep_project / "train.py", *arguments, PAUSE="600")
    wait_for(sweep / "starts.txt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130 and "to resume: python " in errors, errors
    output, errors = run(sweep_project / "train.py", *arguments)
    assert "not finished: lr=3 (no data); the same command runs only the unfinished jobs" in output + errors
    finished = {"sweep": "FINISHED", "lr=5": "FINISHED", "lr=1": "FINISHED"}
    assert statuses(sweep_store) == {**finished, "lr=3": "FAILED"}
    assert [row["job"] for row in read_board(sweep)] == ["lr=5", "lr=1", "lr=3"]
    assert "3 configurations: 2 finished, 1 failed. The best, 0.5000 in validation, is the job `lr=5`." in output
    assert f"    python {sweep_project / 'train.py'} lr=5 tracking.uri={sweep_store}\n" in output
    parent, _ = read_runs(sweep_store)
    note = parent.data.tags["mlflow.note.content"]
    assert "is the job `lr=5`." in note and "train.py -m hydra/sweeper=optuna hydra.sweeper.n_trials=3" in note
    artifacts = MlflowClient(f"sqlite:///{sweep_store}").list_artifacts(parent.info.run_id, "search")
    assert {"search/history.png", "search/slice.png"} <= {item.path for item in artifacts}

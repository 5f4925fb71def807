"""A job whose worker process is killed fails alone."""

import math
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus

from clap.study import killed_workers
from clap.study.job import Job, read_job
from clap.study.killed_workers import outlive_killed_workers


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The batches that `Launcher` has launched."""
    monkeypatch.setattr(killed_workers, "find_folder", lambda launcher, job, number: tmp_path / job[0])
    Launcher.folder, Launcher.launches = tmp_path, []
    return Launcher.launches


class Launcher:
    """Two workers; that of a job named `large` is killed, and with it the other one."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        names = [name for (name,) in job_overrides]
        self.launches.append(names)
        for position, name in enumerate(names):
            (self.folder / name).mkdir(exist_ok=True)
            if name == "large":
                for started in names[: position + 2]:
                    (self.folder / started).mkdir(exist_ok=True)
                    if not read_job(self.folder / started):
                        Job(self.folder / started, started, status="running").write()
                raise BrokenExecutor
            Job(self.folder / name, name, status="finished", value=initial_job_idx + position).write()
        return [self.returned(initial_job_idx + position) for position in range(len(names))]

    def returned(self, value: float) -> JobReturn:
        result = JobReturn(status=JobStatus.COMPLETED)
        result.return_value = value
        return result


def test_only_the_job_whose_worker_is_killed_fails(launches: list, tmp_path: Path):
    outlive_killed_workers(Launcher, {"uri": None})
    outlive_killed_workers(Launcher, {"uri": None})  # of a second sweep in this process
    jobs = [[name] for name in ("a", "large", "b", "c", "d")]
    values = [result.return_value for result in Launcher().launch(jobs, 10)]
    assert math.isnan(values[1]) and [values[0], *values[2:]] == [10, 12, 13, 14]
    assert launches == [["a", "large", "b", "c", "d"], ["a"], ["large"], ["b"], ["c", "d"]]
    large = read_job(tmp_path / "large")
    assert large.status == "failed" and "its process was killed" in large.problem


def test_worker_that_is_killed_before_any_job_ends_the_sweep(launches: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(killed_workers, "read_job", lambda folder: None)
    outlive_killed_workers(Launcher, {"uri": None})
    with pytest.raises(BrokenExecutor):
        Launcher().launch([["large"]], 0)
    assert launches == [["large"]]

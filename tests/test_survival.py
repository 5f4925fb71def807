"""A training that is killed or fails in the middle ends as promised, and resumes from its last good checkpoint."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from script import ROOT, Script
from test_config_ranks import start
from test_tracking_upload import Server
from test_train import TINY

FAULTY = ROOT / "tests" / "faults.py"
OPTIONS = [  # checkpoints are written in about half of the time
    *TINY,
    "tracking.uri=null",
    "dataset.num_workers=1",
    "trainer.save_every=1",
    "trainer.eval_every_steps=8",
    "trainer.ema_decay=0.9",
    "trainer.keep_best=2",
    "trainer.keep_last=2",
]
EPOCHS, FEW = "trainer.max_epochs=12", "trainer.max_epochs=3"  # of six steps
ENDED_SECONDS = 60.0
LOST = "(another process of this run|rank 0) has ended"

pytestmark = pytest.mark.slow


def launch(folder: Path, *arguments: str, count: int = 1, fault: str = "") -> list[Script]:
    """Start a run of one or two processes in a folder."""
    arguments = [*OPTIONS, f"hydra.run.dir={folder}", *arguments]
    return [Script(FAULTY, *arguments, FAULT=fault)] if count == 1 else start(FAULTY, *arguments, FAULT=fault)


def end(processes: Sequence[Script], timeout: float = 300.0) -> tuple[int, str]:
    """The exit status of rank 0, and what all have written to stderr, when all have ended."""
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    return processes[0].returncode, "".join(errors)


def read_results(folder: Path) -> dict[str, bytes]:
    """Weights of all checkpoints, and the metrics."""
    found = [*folder.glob("checkpoints/*/model.safetensors"), folder / "metrics.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], dict[str, bytes]]:
    """`undisturbed(processes, epochs)` -> the results of a run without interruption."""
    folders: dict[tuple[int, str], Path] = {}

    def run(count: int, epochs: str) -> dict[str, bytes]:
        if (count, epochs) not in folders:
            folder = tmp_path_factory.mktemp("undisturbed")
            status, errors = end(launch(folder, epochs, count=count))
            assert status == 0, errors
            folders[count, epochs] = folder
        return read_results(folders[count, epochs])

    return run


def is_saving(folder: Path) -> bool:
    return any(folder.glob("checkpoints/*.new")) or any(folder.glob("checkpoints/*.old"))


def wait_until(condition: Callable[[], bool], processes: Sequence[Script]) -> bool:
    """Whether the condition comes true while all processes run."""
    while not condition():
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.002)
    return True


def last_write(folder: Path) -> float:
    try:
        return (folder / "checkpoints" / "last" / "trainer.pt").stat().st_mtime
    except FileNotFoundError:  # not yet written, or just being replaced
        return 0.0


@pytest.mark.parametrize("count", [1, 2])
def test_run_killed_twenty_times_ends_with_the_same_weights(count: int, undisturbed: Callable, tmp_path: Path):
    """At start-up, in a step, or while a checkpoint is written; of two processes one is killed, or both."""
    moments = random.Random(int(os.environ.get("KILL_SEED", "0")))
    kills, saving = 0, 0
    for number in itertools.count():
        before = last_write(tmp_path)
        processes = launch(tmp_path, EPOCHS, "resume=auto", count=count)
        if number % 5:  # else at start-up
            wait_until(lambda earlier=before: last_write(tmp_path) > earlier, processes)
        time.sleep(moments.uniform(0.0, 0.3 if number % 5 else 4.0))
        if number % 2:
            wait_until(lambda: is_saving(tmp_path), processes)
        if any(process.poll() is not None for process in processes) or kills == 20:
            break
        saving += is_saving(tmp_path)
        victims = moments.choice([processes, *([process] for process in processes)])
        for process in victims:
            process.kill()
        kills += 1
        started = time.monotonic()
        for process in processes:
            process.wait(ENDED_SECONDS)
        assert time.monotonic() - started < ENDED_SECONDS
    status, errors = end(processes)
    assert status == 0, errors
    assert kills == 20 and saving >= 3, f"{kills} kills, {saving} while saving"
    assert read_results(tmp_path) == undisturbed(count, EPOCHS)


FAILURES = [  # fault, ranks, exit status, part of the message
    ("kill", [0, 1], 1, LOST),
    ("kill_in_saving", [0, 1], 1, LOST),
    ("kill_in_evaluation", [0, 1], 1, LOST),
    ("kill_worker", [0, 1], 1, "a process that loads data was killed by signal: Killed"),
    ("terminate", [0, 1], 130, "stopped at step 9, saved in "),
    ("fill_disk", [0], 1, "checkpoint not written ([Errno 28] No space left on device); the previous "),
    ("break_evaluation", [0, 1], 1, "an evaluator without a result"),
    ("break_loss", [0, 1], 1, "the loss is nan at step 8 (epoch 2, batch 2: "),
    ("break_backward", [0, 1], 1, "a backward pass that fails"),
    ("break_gradient", [0, 1], 1, "the gradient of audio_projection"),
]


@pytest.mark.parametrize(
    ("fault", "rank", "status", "message"),
    [(fault, rank, *rest) for fault, ranks, *rest in FAILURES for rank in ranks],
    ids=lambda value: str(value)[:20],
)
def test_failure_of_one_process_ends_both_and_the_run_resumes_exactly(
    fault: str, rank: int, status: int, message: str, undisturbed: Callable, tmp_path: Path
):
    processes = launch(tmp_path, FEW, count=2, fault=f"{rank} {fault}")
    wait_until(lambda: last_write(tmp_path) > 0, processes)
    started = time.monotonic()
    found, errors = end(processes)
    seconds, log = time.monotonic() - started, (tmp_path / "train.log").read_text()
    assert seconds < ENDED_SECONDS
    assert found == (-signal.SIGKILL if message == LOST and rank == 0 else status), errors
    assert re.search(re.escape(message) if message != LOST else message, errors + log), errors
    status, errors = end(launch(tmp_path, FEW, "resume=auto", count=2))
    assert status == 0, errors
    assert read_results(tmp_path) == undisturbed(2, FEW)


def test_unreadable_clips_of_one_process_are_skipped_and_counted_over_both(tmp_path: Path):
    options = ["dataset.max_bad_fraction=0.5", "trainer.max_epochs=2"]
    status, errors = end(launch(tmp_path / "few", *options, count=2, fault="1 skip_clips"))
    assert status == 0, errors
    log = (tmp_path / "few" / "train.log").read_text()
    skipped = re.findall(r"skipped in training: (\S+): cannot be read", log)
    assert 4 < len(skipped) == len(set(skipped)) <= 12
    assert f"{len(skipped)} of 48" in log
    status, errors = end(
        launch(tmp_path / "many", *options, "dataset.max_bad_fraction=0.05", count=2, fault="1 skip_clips")
    )
    assert status == 1
    assert re.search(r"error: 3 of 48 training clips cannot be used, the last: .*; fix them or raise", errors), errors


def test_two_processes_resume_as_one_with_the_same_batch(tmp_path: Path):
    status, errors = end(launch(tmp_path, FEW, count=2, fault="1 terminate"))
    assert status == 130, errors
    status, errors = end(launch(tmp_path, FEW, "resume=auto"))
    assert status == 0, errors
    log = (tmp_path / "train.log").read_text()
    assert "batch 8 = 2 x 4 clips" in log
    assert "processes: 2 so far, 1 from here on; the global batch stays" in log
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["steps"] == 18


def torchrun(folder: Path, *arguments: str, fault: str = "") -> subprocess.Popen:
    variables = {"FAULT": fault, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(FAULTY)]
    return subprocess.Popen(
        [*command, *OPTIONS, f"hydra.run.dir={folder}", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_end(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=ENDED_SECONDS)
    assert not alive


@pytest.mark.parametrize("place", ["training", "evaluation", "saving"])
def test_ctrl_c_to_torchrun_saves_and_resumes_exactly(place: str, undisturbed: Callable, tmp_path: Path):
    process = torchrun(tmp_path, FEW, fault=f"all pause_in_{place}")
    assert wait_until(lambda: len(list(tmp_path.glob("paused-*"))) == 2, [process])
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=ENDED_SECONDS)
    wait_for_end(children)
    assert errors.count("to resume: torchrun --standalone --nproc-per-node=2 ") == 1
    assert "stopped at step" in (tmp_path / "train.log").read_text()
    status, errors = end(launch(tmp_path, FEW, "resume=auto", count=2))
    assert status == 0, errors
    assert read_results(tmp_path) == undisturbed(2, FEW)


def test_torchrun_whose_processes_are_killed_ends_and_resumes_exactly(undisturbed: Callable, tmp_path: Path):
    """One process, torchrun itself or all, in a step or while a checkpoint is written."""
    for number, victim in enumerate([1, 2, 1, 2, 0, 0, None, None]):
        before = last_write(tmp_path)
        process = torchrun(tmp_path, EPOCHS, "resume=auto")
        assert wait_until(lambda earlier=before: last_write(tmp_path) > earlier, [process])
        if number % 2:
            wait_until(lambda: is_saving(tmp_path), [process])
        agent = psutil.Process(process.pid)
        everything = [agent, *agent.children(recursive=True)]
        for found in everything if victim is None else [[agent, *agent.children()][victim]]:
            found.kill()
        process.communicate(timeout=ENDED_SECONDS)
        wait_for_end(everything)
    status, errors = end(launch(tmp_path, EPOCHS, "resume=auto", count=2))
    assert status == 0, errors
    assert read_results(tmp_path) == undisturbed(2, EPOCHS)


def test_lost_mlflow_server_does_not_stop_two_processes(empty_store: Path, undisturbed: Callable, tmp_path: Path):
    (tmp_path / "server").mkdir()
    shutil.copy(empty_store, tmp_path / "server" / "server.db")
    server = Server(tmp_path / "server")
    options = [FEW, f"tracking.uri={server.address}"]
    folder = tmp_path / "run"
    try:
        processes = launch(folder, *options, count=2, fault="0 pause_in_training")
        assert wait_until((folder / "paused-0").exists, processes)
    finally:
        server.kill()
    status, errors = end(processes)
    assert status == 0, errors
    assert "stopped answering" in (folder / "train.log").read_text()
    assert read_results(folder) == undisturbed(2, FEW)

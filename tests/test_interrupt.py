"""The first Ctrl-C or SIGTERM is recorded, the second raises KeyboardInterrupt; a worker ends with its parent."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from clap.run_folder import METRICS
from clap.training.interrupt import end_with_parent, stop_on_signal


def test_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def train_until_stopped(started: Connection) -> None:
    """A worker whose job ends when a signal arrives; it reports what it received."""
    with end_with_parent(), stop_on_signal() as received:
        started.send(os.getpid())
        while not received:
            time.sleep(0.01)
        started.send(received)


def sweep_with_one_worker(started: Connection) -> None:
    worker = multiprocessing.get_context("fork").Process(target=train_until_stopped, args=(started,))
    worker.start()
    worker.join()


def test_worker_of_a_killed_parent_stops_and_ends():
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    sweep = context.Process(target=sweep_with_one_worker, args=(sender,))
    sweep.start()
    sender.close()
    assert receiver.poll(20) and receiver.recv() != sweep.pid
    sweep.kill()
    assert receiver.poll(20) and receiver.recv() == [signal.SIGTERM]
    assert receiver.poll(20)
    with pytest.raises(EOFError):  # the worker, which has the other end, has exited
        receiver.recv()


def test_second_signal_is_ignored_with_several_processes(monkeypatch: pytest.MonkeyPatch):
    """Each receives one from the terminal and one from torchrun."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGINT)
    try:
        with stop_on_signal() as received:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGINT, signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)  # while the last checkpoint and the MLflow run are written
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_signal_in_the_last_validation_stops_before_the_test(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(epochs=1)
    validate = trainer.validate

    def validate_and_stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        validate()

    trainer.validate = validate_and_stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train_and_eval(tmp_path)
    assert not (tmp_path / METRICS).exists()
    resumed = make_trainer(epochs=1)
    resumed.resume(tmp_path / "checkpoints" / "last")
    assert resumed.train_and_eval(tmp_path).keys() > trainer.validation.best_metrics.keys()

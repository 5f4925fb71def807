"""An index that is killed at random moments and started again equals an undisturbed one, byte for byte."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from conftest import make_tone

from clap.atomic import PARTIAL
from clap.sound_index.vectors import TABLE

KILLS = 5
NUM_FILES = int(os.environ.get("INDEX_FILES", "700"))

pytestmark = pytest.mark.slow


def start(folder: Path, checkpoint: Path, index: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "clap", "index", folder, "--checkpoint", checkpoint, "--output", index]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


def test_index_killed_at_random_moments_equals_an_undisturbed_one(tiny_checkpoint: Path, tmp_path: Path):
    sounds, killed, whole = tmp_path / "sounds", tmp_path / "killed", tmp_path / "whole"
    for i in range(NUM_FILES):
        path = sounds / f"{i % 10}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_tone(100.0 + i, 12.0 if i % 350 == 7 else 0.3), 16_000)
    (sounds / "broken.wav").write_bytes(b"no audio" * 100)
    moments, journal = random.Random(int(os.environ.get("KILL_SEED", "0"))), killed / "unfinished.jsonl"

    def count_batches() -> int:
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    num_batches = NUM_FILES // 128
    stops = sorted(moments.randrange(num_batches) for _ in range(KILLS - 2))
    for stop in [-1, *stops]:  # first at a random moment of the start, then after random batches
        process = start(sounds, tiny_checkpoint, killed)
        wait_until(lambda stop=stop: count_batches() > stop, process)
        time.sleep(moments.uniform(0.0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60.0)
    process = start(sounds, tiny_checkpoint, killed)
    wait_until(lambda: any(killed.glob(f"{TABLE}.*{PARTIAL}")), process)  # the table is being written
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60.0) == -signal.SIGKILL
    for index in (killed, whole):
        assert start(sounds, tiny_checkpoint, index).wait() == 0
    for name in ("embeddings.parquet", "errors.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())

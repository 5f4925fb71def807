"""A training from remote shards that is killed at random moments ends with the weights of one from local shards."""

import os
import random
import time
from pathlib import Path

import pytest
from download_server import serve
from script import Script
from test_survival import FAULTY, OPTIONS, end, last_write, read_results, wait_until

from clap.corpus import SPLITS
from clap.dataset.shard_writer import ShardOptions, write_split
from clap.dataset.synthetic import Synthetic

KILLS = 8
SIZES = ("dataset.num_train", "dataset.num_val", "dataset.num_test")  # of the synthetic dataset

pytestmark = pytest.mark.slow


def launch(folder: Path, *arguments: str) -> Script:
    """Start a training from shards."""
    options = [option for option in OPTIONS if not option.startswith(SIZES)]
    return Script(FAULTY, *options, "dataset=shards", "trainer.max_epochs=8", f"hydra.run.dir={folder}", *arguments)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    corpus = Synthetic(num_train=48, num_val=12, num_test=12, max_duration=3.0)
    for split in SPLITS:
        options = ShardOptions(max_clips=8, sample_rate=32000)
        write_split(corpus, corpus.clips(split), folder / split, options, shuffle=split == "train")
    return folder


def test_killed_training_from_remote_shards_ends_with_the_weights_of_local_ones(shards: Path, tmp_path: Path):
    status, errors = end([launch(tmp_path / "local", f"dataset.root={shards}", "dataset.open_shards=2")])
    assert status == 0, errors
    moments, run = random.Random(int(os.environ.get("KILL_SEED", "0"))), tmp_path / "remote"
    with serve(shards) as server:
        server.pause = 0.001  # seconds for each piece, so that some kills are in a download
        patterns = {"train": "{000000..000005}", "val": "{000000..000001}", "test": "{000000..000001}"}
        places = [f'dataset.{split}="{server.address}/{split}/{names}.tar"' for split, names in patterns.items()]
        limits = [f"dataset.shard_cache={tmp_path / 'cache'}", "dataset.shard_cache_gigabytes=0.002"]
        options = [*places, *limits, "dataset.open_shards=2", "resume=auto"]
        for number in range(KILLS):
            before = last_write(run)
            process = launch(run, *options, f"dataset.num_workers={1 + 2 * (number % 2)}")
            if number % 3:  # else at start-up, while shards are fetched
                wait_until(lambda earlier=before: last_write(run) > earlier, [process])
            time.sleep(moments.uniform(0.0, 0.4 if number % 3 else 5.0))
            if process.poll() is not None:
                break
            process.kill()
            process.wait(60.0)
        status, errors = end([launch(run, *options)])
    assert status == 0, errors
    assert number >= 3
    assert read_results(run) == read_results(tmp_path / "local")

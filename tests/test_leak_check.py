"""Evaluated clips that a checkpoint was trained on: refused, or stated in the protocol."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from clap.checkpoint import TRAIN_CLIPS
from clap.dataset.clips import ClapDataset
from clap.dataset.leaks import UNKNOWN, digest_training_clips
from clap.dataset.synthetic import Synthetic
from clap.evaluation.evaluator import evaluate_split
from clap.evaluation.leak_check import check_leaks, read_train_clips
from clap.evaluation.retrieval import Retrieval


def open_scenes(kind: str = "train", count: int = 4) -> ClapDataset:
    corpus = Synthetic(num_train=count, num_val=count, num_test=count)
    return ClapDataset(corpus, kind, sample_rate=16_000, training=False)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint that was trained on the first two of four training scenes."""
    np.save(tmp_path / TRAIN_CLIPS, digest_training_clips(open_scenes(count=2)))
    return tmp_path


def relabel(dataset: ClapDataset, kind: str) -> ClapDataset:
    dataset.kind = kind
    return dataset


def test_training_clips_in_a_test_set_are_refused_with_their_number_and_names(trained: Path):
    leaking = relabel(open_scenes(), "test")
    message = r"2 of 4 test clips of synthetic, 2 by their samples \(train-00000, train-00001\), .*allow_leaks=true"
    with pytest.raises(ValueError, match=message):
        check_leaks(trained, [leaking], split="test", allow=False)
    check_leaks(trained, [open_scenes("test"), open_scenes()], split="test", allow=False)


def test_allowed_training_clips_are_in_the_protocol_and_its_hash(trained: Path, tiny_clap: Callable):
    clap, protocols = tiny_clap(), []
    for check in (None, open_scenes("test"), relabel(open_scenes(), "test")):
        dataset = check or relabel(open_scenes(), "test")
        if check is not None:
            check_leaks(trained, [dataset], split="test", allow=True)
        loader = DataLoader(dataset, batch_size=4, collate_fn=clap.collate)
        protocols.append(evaluate_split(clap, loader, {"retrieval": Retrieval()})["retrieval"].protocol)
    unknown, clean, leaking = protocols
    assert [protocol["leak_check"] for protocol in protocols] == ["unknown", "complete", "complete"]
    assert "training_clips_in_test" not in unknown | clean
    assert leaking["training_clips_in_test"] == 2
    assert unknown["hash"] != leaking["hash"]  # of the same clips


def test_train_split_is_evaluated_on_purpose(trained: Path, caplog: pytest.LogCaptureFixture):
    dataset = open_scenes()
    check_leaks(trained, [dataset], split="train", allow=False)
    assert dataset.num_leaked == 2 and "2 of 4 train clips" in caplog.text


def test_checkpoint_without_the_file_is_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    dataset = open_scenes()
    check_leaks(tmp_path, [dataset], split="train", allow=False)
    check_leaks("laion/clap-htsat-unfused", [dataset], split="train", allow=False)
    assert dataset.num_leaked is None and caplog.text.count("does not record its training clips") == 2


def test_weights_of_unknown_origin_leave_the_number_unknown_unless_clips_are_found(trained: Path):
    known = read_train_clips(trained)
    np.save(trained / TRAIN_CLIPS, np.union1d(known, np.array([UNKNOWN], np.uint64)))
    clean, leaking = open_scenes("test"), relabel(open_scenes(), "test")
    check_leaks(trained, [clean, leaking], split="test", allow=True)
    assert (clean.num_leaked, leaking.num_leaked) == (None, 2)


def test_damaged_file_is_an_error(trained: Path):
    (trained / TRAIN_CLIPS).write_bytes(b"no digests")
    with pytest.raises(ValueError, match=f"{TRAIN_CLIPS}: damaged"):
        read_train_clips(trained)

"""train_clips.npy of the checkpoints of a run."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clap.checkpoint import TRAIN_CLIPS
from clap.dataset.clip_table import JoinedClips
from clap.dataset.leaks import UNKNOWN, digest_training_clips
from clap.training import train_clips


def read_files(folder: Path) -> dict[str, Path]:
    """Checkpoint -> its file."""
    return {path.parent.name: path for path in folder.glob(f"checkpoints/*/{TRAIN_CLIPS}")}


@pytest.mark.parametrize("few", [5000, 1])
def test_checkpoints_share_one_file_of_the_training_clips(
    few: int, make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of more than FEW clips, another process writes it."""
    monkeypatch.setattr(train_clips, "FEW", few)
    trainer = make_trainer(keep_last=2)
    trainer.train_and_eval(tmp_path)
    files = read_files(tmp_path)
    assert files.keys() == {"best", "last", "step-000002"}
    assert len({path.stat().st_ino for path in files.values()}) == 1
    np.testing.assert_array_equal(np.load(files["last"]), digest_training_clips(trainer.train_loader.dataset))
    protocols = json.loads((tmp_path / "evaluation" / "protocol.json").read_text())
    assert protocols["test-synthetic-retrieval"]["leak_check"] == "complete"


def test_interrupted_run_does_not_wait_and_its_resume_completes_the_file(
    make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train_clips, "FEW", 1)
    monkeypatch.setattr("clap.dataset.leaks.digest_samples", lambda corpus, clip: time.sleep(60))
    trainer = make_trainer(save_every=1)

    def stop(step: int, metric: float, *, ended: bool) -> None:
        raise KeyboardInterrupt

    trainer.after_validation = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(tmp_path)
    assert not read_files(tmp_path)
    monkeypatch.undo()
    resumed = make_trainer()
    resumed.resume(tmp_path / "checkpoints" / "last")
    resumed.fit(tmp_path)
    assert read_files(tmp_path).keys() == {"best", "last"}


def test_resume_writes_a_damaged_file_again(make_trainer: Callable, tmp_path: Path):
    make_trainer(save_every=1, max_steps=1).fit(tmp_path)
    (tmp_path / TRAIN_CLIPS).unlink()
    for path in read_files(tmp_path).values():
        path.unlink()
        path.write_bytes(b"\x93NUMPY")
    resumed = make_trainer()
    resumed.resume(tmp_path / "checkpoints" / "last")
    resumed.fit(tmp_path)
    for path in read_files(tmp_path).values():
        np.testing.assert_array_equal(np.load(path), digest_training_clips(resumed.train_loader.dataset))


@pytest.mark.parametrize(
    ("key", "has_file", "added"),
    [
        ("init_from", True, {7, 9}),
        ("init_from", False, {UNKNOWN}),
        ("pretrained", True, {7, 9}),
        ("pretrained", False, set()),
    ],
)
def test_clips_of_the_initial_weights_are_among_those_of_the_run(
    key: str, has_file: bool, added: set[int], make_trainer: Callable, tmp_path: Path
):
    source = tmp_path / "source"
    source.mkdir()
    if has_file:
        np.save(source / TRAIN_CLIPS, np.array([7, 9], np.uint64))
    trainer = make_trainer(1)
    config = {"init_from": str(source)} if key == "init_from" else {"audio_encoder": {"pretrained": str(source)}}
    recorder = train_clips.TrainClips(trainer.train_loader.dataset, config)
    recorder.file = tmp_path / TRAIN_CLIPS
    recorder.write()
    digests = set(np.load(tmp_path / TRAIN_CLIPS).tolist())
    own = set(digest_training_clips(trainer.train_loader.dataset).tolist())
    assert digests - own == added


def share_a_recording(trainer: object, *kinds: str) -> None:
    """Let the first clips of two splits be of one recording."""
    for kind in kinds:
        dataset = trainer.loaders[kind].dataset
        first, *rest = dataset.clips
        dataset.clips = JoinedClips([[replace(first, source="freesound:1"), *rest]])


def test_test_clip_of_a_trained_recording_is_refused_before_training(make_trainer: Callable, tmp_path: Path):
    trainer = make_trainer(1)
    share_a_recording(trainer, "train", "test")
    with pytest.raises(
        ValueError, match="1 training clips .* test split of synthetic, such as train-00000; .*allow_leaks"
    ):
        trainer.fit(tmp_path)


def test_allowed_test_clip_is_in_the_protocol(make_trainer: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = make_trainer(1, allow_leaks=True)
    share_a_recording(trainer, "train", "test")
    trainer.train_and_eval(tmp_path)
    protocols = json.loads((tmp_path / "evaluation" / "protocol.json").read_text())
    assert protocols["test-synthetic-retrieval"]["training_clips_in_test"] == 1
    assert "1 of 6 test clips of synthetic, 1 by their recording (test-00000), were in the training set" in caplog.text

"""Where a run resumes from; that it ends exactly as an uninterrupted one is in test_trainer.py."""

from pathlib import Path

import pytest

from clap.checkpoint import find_resume
from clap.training.state import read_run_id


def test_resume_auto_without_a_checkpoint_starts_from_scratch(tmp_path: Path):
    assert find_resume("auto", tmp_path) is None


def test_resume_from_a_folder_without_training_state_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"trainer.pt is missing .*; the folder holds config.yaml"):
        find_resume(str(tmp_path), tmp_path)


def test_resume_finds_the_last_checkpoint_of_a_run(tmp_path: Path):
    last = tmp_path / "run" / "checkpoints" / "last"
    last.mkdir(parents=True)
    assert find_resume(str(tmp_path / "run"), tmp_path) == find_resume("auto", tmp_path / "run") == last


def test_run_without_a_checkpoint_has_no_run_id():
    assert read_run_id(None) is None

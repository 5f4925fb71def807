"""The files of a run folder, and its owner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clap.run_folder import count_clips, create_new_folder, find_count, is_running, own_folder, read_history


def test_later_value_of_a_step_wins(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "metrics": {"a": 1}}\n{"step": 1, "metrics": {"a": 0}}\n{"step": 2, "metrics": {"a": 3}}'
    )
    assert read_history(path) == [{"step": 1, "metrics": {"a": 0}}, {"step": 2, "metrics": {"a": 3}}]


def test_history_skips_a_truncated_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "metrics": {"a": 0}}\n{"step": 2, "met')
    assert read_history(path) == [{"step": 1, "metrics": {"a": 0}}]


PROTOCOL = {"split": "test", "dataset": "audiocaps", "clips": "893 of 975"}
COUNTS = {
    "some are missing": ([PROTOCOL], "893 of 975 clips"),
    "as published": ([PROTOCOL | {"published_clips": 975}], "893 of 975 clips"),
    "fewer listed than published": ([PROTOCOL | {"published_clips": 1000}], "893 of 975 clips (1000 published)"),
    "some without a label": ([PROTOCOL, PROTOCOL | {"clips_with_label": 9}], "893 of 975 clips (9 with a label)"),
}


@pytest.mark.parametrize(("protocols", "text"), COUNTS.values(), ids=COUNTS)
def test_clips_behind_a_metric(protocols: list[dict], text: str):
    counts = count_clips(protocols)
    assert counts == {"test/audiocaps/clips": text}
    assert find_count("test/audiocaps/text_to_audio/recall_at_1", counts) == text
    assert find_count("val/audiocaps/text_to_audio/recall_at_1", counts) == ""


def own(folder: Path, resume: str | Path | None = None) -> str:
    """Own a folder for a moment; returns the id of its run."""
    with own_folder(folder, resume=resume, advice="set another"):
        return json.loads((folder / "run.json").read_text())["id"]


def test_folder_that_exists_gets_the_next_free_suffix(tmp_path: Path):
    created = [create_new_folder(tmp_path / "day" / "10-00-00").name for _ in range(3)]
    assert created == ["10-00-00", "10-00-00-2", "10-00-00-3"]


@pytest.mark.parametrize("result", ["checkpoints", "metrics.jsonl", "metrics.json", "mlflow.json", "evaluation"])
def test_folder_with_results_is_refused_unless_its_run_resumes(result: str, tmp_path: Path):
    folder = tmp_path / "run"
    own(folder)
    (folder / "checkpoints" / "last").mkdir(parents=True)
    (folder / result).mkdir(exist_ok=True)
    for resume in (None, tmp_path / "other" / "checkpoints" / "last"):
        with pytest.raises(FileExistsError, match=f"holds a run .*{result}.*; set another"):
            own(folder, resume)
    assert own(folder, "auto") == own(folder, folder / "checkpoints" / "last")


@pytest.mark.parametrize("results", [["metrics.json"], ["sweep.json", "mlflow.json"]], ids=str)
def test_results_without_a_checkpoint_are_not_replaced_by_resume_auto(results: list[str], tmp_path: Path):
    for name in results:
        (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match="holds"):
        own(tmp_path, "auto")


def test_resumed_run_keeps_its_id_and_another_run_has_its_own(tmp_path: Path):
    first = own(tmp_path)
    assert own(tmp_path) != first  # nothing had been written
    (tmp_path / "checkpoints").mkdir()
    assert own(tmp_path, "auto") == own(tmp_path, "auto")


def test_owner_removes_partial_files_of_a_killed_writer(tmp_path: Path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "checkpoints").mkdir()
    for name in ("mlflow.json.12.partial", "evaluation/protocol.json.12.partial"):
        (tmp_path / name).touch()
    own(tmp_path, "auto")
    assert not list(tmp_path.rglob("*.partial"))


HOLD = """
import os, sys, time
from pathlib import Path
from clap.run_folder import own_folder
with own_folder(Path(sys.argv[1]), advice=""):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_second_owner_is_refused_until_the_first_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        with pytest.raises(BlockingIOError, match=rf"is in use by process {holder.pid} on \S+ since \d{{4}}-"):
            own(tmp_path, "auto")
        holder.kill()
        holder.wait()
        try:
            assert not is_running(tmp_path)  # though a forked process lives on, as the workers of a DataLoader may
            own(tmp_path)
        finally:
            os.kill(child, 9)


def test_nested_owner_of_the_same_process_changes_nothing(tmp_path: Path):
    with own_folder(tmp_path, advice=""):
        (tmp_path / "checkpoints").mkdir()
        own(tmp_path)
        assert is_running(tmp_path)
    assert not is_running(tmp_path)

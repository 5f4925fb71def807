"""The leaderboard of a sweep: order, jobs without a result, and truncated files."""

import csv
import io
import json
from pathlib import Path

import pytest

from clap.study.job import Job, read_job, read_jobs
from clap.study.leaderboard import Leaderboard

RECALL = "test/x/text_to_audio/recall_at_1"


def add_job(sweep: Path, name: str, recall: float | None = None, *, status: str = "finished", **values) -> Job:
    job = Job(sweep / f"folder-{name}", name, status, **values)
    job.folder.mkdir()
    job.write()
    if recall is not None:
        metrics = {RECALL: recall, "test/x/text_to_audio/median_rank": 3.0, "val/x/text_to_audio/recall_at_1": 1.0}
        (job.folder / "metrics.json").write_text(json.dumps(metrics))
        (job.folder / "cost.json").write_text('{"seconds": 90.0, "parameters": 7}')
    return job


def make_board(sweep: Path, *metrics: str) -> Leaderboard:
    return Leaderboard(read_jobs(sweep), metrics)


def names(board: Leaderboard) -> list[str]:
    return [row["job"] for row in board.rows]


def test_jobs_are_sorted_best_first_and_without_a_result_last(tmp_path: Path):
    for name, recall in {"a": 0.1, "b": 0.3, "c": 0.2}.items():
        add_job(tmp_path, name, recall)
    add_job(tmp_path, "0", status="failed", error="no data")
    assert names(make_board(tmp_path)) == ["b", "c", "a", "0"]


@pytest.mark.parametrize(("metric", "order"), [("mean_rank", ["a", "b"]), ("recall_at_1", ["b", "a"])])
def test_lower_ranks_come_first(tmp_path: Path, metric: str, order: list[str]):
    for name, value in {"b": 0.9, "a": 0.1}.items():
        job = add_job(tmp_path, name, 0.0)
        (job.folder / "metrics.json").write_text(json.dumps({f"test/x/text_to_audio/{metric}": value}))
    assert names(make_board(tmp_path, f"test/x/text_to_audio/{metric}")) == order


def test_ties_are_sorted_by_name(tmp_path: Path):
    for name in ("b", "c", "a"):
        add_job(tmp_path, name, 0.5)
    assert names(make_board(tmp_path)) == ["a", "b", "c"]


def test_nan_is_sorted_last(tmp_path: Path):
    add_job(tmp_path, "a", float("nan"))
    add_job(tmp_path, "b", 0.0)
    assert names(make_board(tmp_path)) == ["b", "a"]


def test_leading_metric_of_the_study_sorts(tmp_path: Path):
    for name, recall in {"a": 0.1, "b": 0.3}.items():
        job = add_job(tmp_path, name, recall)
        (job.folder / "metrics.json").write_text(json.dumps({RECALL: recall, "test/x/other": -recall}))
    board = make_board(tmp_path, "test/x/other", RECALL)
    assert names(board) == ["a", "b"]
    assert board.markdown().splitlines()[0].split(" | ")[1] == "x other"


def test_own_evaluator_has_a_column_and_can_lead(tmp_path: Path):
    own = {"val/x/probe/f1": 1.0, "test/x/probe/f1": 0.7, "test/x/probe/accuracy": 0.9}
    job = add_job(tmp_path, "a", 0.1)
    (job.folder / "metrics.json").write_text(json.dumps({RECALL: 0.1} | own))
    assert make_board(tmp_path).metrics == [RECALL, "test/x/probe/f1"]
    (job.folder / "metrics.json").write_text(json.dumps(own))
    assert make_board(tmp_path).metrics == ["test/x/probe/f1"]


def test_chance_is_the_last_line(tmp_path: Path):
    job = add_job(tmp_path, "a", 0.25)
    add_clips(job, "9 of 9", chance={RECALL: 0.125})
    add_job(tmp_path, "b", 0.5)
    board = make_board(tmp_path)
    assert board.markdown().splitlines()[-1].split(" | ")[:2] == ["| chance", "0.125".ljust(27)]
    assert {row["job"]: row.get(f"{RECALL}/chance") for row in board.rows} == {"a": 0.125, "b": None}
    assert len(list(csv.DictReader(io.StringIO(board.csv())))) == 2


def test_chance_levels_that_differ_are_a_range(tmp_path: Path):
    for name, chance in {"a": 0.125, "b": 0.25}.items():
        add_clips(add_job(tmp_path, name, 0.25), "9 of 9", chance={RECALL: chance})
    assert make_board(tmp_path).markdown().splitlines()[-1].startswith("| chance | 0.125 to 0.250 ")


def test_long_table_is_cut_on_request(tmp_path: Path):
    for number in range(5):
        add_job(tmp_path, str(number), number / 10)
    text = make_board(tmp_path).markdown(longest=2)
    assert "| 4 " in text and "| 2 " not in text and text.endswith("and 3 more in the csv\n")


def test_failed_job_has_no_numbers_in_the_table(tmp_path: Path):
    add_job(tmp_path, "a", 0.9, status="failed", error="plots | could not\nbe drawn".replace("\n", " "))
    add_job(tmp_path, "b", 0.1)
    board = make_board(tmp_path)
    assert names(board) == ["b", "a"]
    assert board.rows[1][RECALL] is None
    assert "plots \\| could not be drawn" in board.markdown()


def test_table_is_aligned_and_has_minutes(tmp_path: Path):
    add_job(tmp_path, "htsat_nano-s0", 0.25)
    add_job(tmp_path, "s1", 0.5)
    assert make_board(tmp_path).markdown() == (
        "| job           | x text_to_audio recall_at_1 | minutes |\n"
        "| ------------- | --------------------------- | ------- |\n"
        "| s1            | 0.500                       | 1.5     |\n"
        "| htsat_nano-s0 | 0.250                       | 1.5     |\n"
    )


def test_commits_are_shown_if_they_differ(tmp_path: Path):
    add_job(tmp_path, "a", 0.5, commits=["1" * 40])
    add_job(tmp_path, "b", status="failed", error="no data", commits=["2" * 40])
    assert "commit" not in make_board(tmp_path).markdown()
    add_job(tmp_path, "c", 0.25, commits=["1" * 40, f"{'2' * 40}-dirty"])
    add_job(tmp_path, "d", 0.125)
    header, _, *rows = (line.split("|") for line in make_board(tmp_path).markdown().splitlines())
    assert header[-3].strip() == "commit"
    expected = ["1" * 12, f"{'1' * 12}, then {'2' * 12}-dirty", "unknown", "2" * 12]
    assert [row[-3].strip() for row in rows] == expected


def test_csv_has_every_test_metric_cost_and_folder(tmp_path: Path):
    add_job(tmp_path, "a", 0.25)
    (row,) = csv.DictReader(io.StringIO(make_board(tmp_path).csv()))
    assert (row["job"], row["status"], row["folder"], row["problem"]) == ("a", "finished", "folder-a", "")
    assert (row[RECALL], row["test/x/text_to_audio/median_rank"], row["parameters"]) == ("0.25", "3.0", "7")
    assert not [name for name in row if name.startswith("val/")]


def add_clips(job: Job, clips: str, *, protocol: str = "0123456789ab", chance: dict | None = None) -> None:
    (job.folder / "evaluation").mkdir()
    protocol = {"split": "test", "dataset": "x", "clips": clips, "hash": protocol, "chance": chance or {}}
    (job.folder / "evaluation" / "protocol.json").write_text(json.dumps({"test-x-retrieval": protocol}))


def test_table_counts_clips_if_some_are_missing(tmp_path: Path):
    for name, clips in {"a": "893 of 975", "b": "975 of 975"}.items():
        add_clips(add_job(tmp_path, name, 0.25), clips)
    add_job(tmp_path, "c", status="failed", error="no data")
    board = make_board(tmp_path)
    cells = [line.split(" | ")[2].strip() for line in board.markdown().splitlines()]
    assert cells[0] == "x clips" and cells[2:] == ["893 of 975 clips", "975 of 975 clips", "–"]
    assert board.counts == ["test/x/clips"]


def test_protocols_are_shown_where_they_differ(tmp_path: Path):
    for name, protocol in {"a": "aaa", "b": "aaa"}.items():
        add_clips(add_job(tmp_path, name, 0.25), "9 of 9", protocol=protocol)
    add_job(tmp_path, "failed", status="failed", error="no data")
    assert "protocol" not in make_board(tmp_path).markdown()
    add_clips(add_job(tmp_path, "c", 0.5), "9 of 9", protocol="ccc")
    head, _, *lines = make_board(tmp_path).markdown().splitlines()
    column = head.split(" | ").index("protocol".ljust(8))
    assert [line.split(" | ")[column].strip() for line in lines] == ["ccc", "aaa", "aaa", ""]


def test_folds_differ_in_their_protocols(tmp_path: Path):
    for fold, protocol in {1: "aaa", 2: "bbb"}.items():
        add_clips(add_job(tmp_path, str(fold), 0.25, config={"dataset.test_fold": fold}), "9 of 9", protocol=protocol)
    assert "protocol" not in make_board(tmp_path).markdown()
    add_clips(add_job(tmp_path, "c", 0.5, config={"dataset.test_fold": 1}), "9 of 9", protocol="ccc")
    assert "protocol" in make_board(tmp_path).markdown()


def test_table_of_complete_test_sets_has_no_clip_counts(tmp_path: Path):
    add_clips(add_job(tmp_path, "a", 0.25), "975 of 975")
    board = make_board(tmp_path)
    assert "clips" not in board.markdown()
    assert board.rows[0]["test/x/clips"] == "975 of 975 clips"


def test_validation_metrics_are_used_without_a_test_split(tmp_path: Path):
    job = add_job(tmp_path, "a")
    (job.folder / "metrics.json").write_text('{"val/x/text_to_audio/recall_at_1": 0.5}')
    assert "0.500" in make_board(tmp_path).markdown()


def test_sweep_without_jobs_has_an_empty_table(tmp_path: Path):
    board = make_board(tmp_path)
    assert board.csv() == "job\n"
    assert board.markdown().startswith("| job")


def test_sweep_without_finished_jobs_lists_their_problems(tmp_path: Path):
    add_job(tmp_path, "a", status="failed", error="no data")
    add_job(tmp_path, "b", status="running")
    lines = make_board(tmp_path).markdown().splitlines()
    assert [line.split(" | ")[-1].strip(" |") for line in lines] == ["problem", "-------", "no data", "stopped"]


@pytest.mark.parametrize("text", ["", '{"name": "a", "sta', "\0\0\0\0"])
def test_job_with_a_truncated_record_has_not_started(text: str, tmp_path: Path):
    job = add_job(tmp_path, "a", 0.5)
    (job.folder / "job.json").write_text(text)
    assert read_job(job.folder) is None
    assert read_jobs(tmp_path) == []


def test_truncated_metrics_are_not_a_result(tmp_path: Path):
    job = add_job(tmp_path, "a", 0.5)
    (job.folder / "metrics.json").write_text('{"test/x')
    assert "0.500" not in make_board(tmp_path).markdown()


def test_search_is_sorted_by_validation(tmp_path: Path):
    for name, recall, value in (("a", 0.3, 0.5), ("b", 0.1, 0.75), ("c", 0.2, float("nan"))):
        job = add_job(tmp_path, name, recall)
        job.value = value
        job.write()
    add_job(tmp_path, "d", status="pruned", value=0.9)
    board = Leaderboard(read_jobs(tmp_path), by_validation=True)
    assert names(board) == ["b", "a", "c", "d"] and board.best()[f"best/{RECALL}"] == 0.1
    assert board.summary().startswith("Best: b (best validation 0.750).")
    assert [cell.strip() for cell in board.markdown().splitlines()[2].split("|")][1:4] == ["b", "0.750", "0.100"]


def test_no_fold_is_the_best(tmp_path: Path):
    for fold, recall in ((1, 0.1), (2, 0.3)):
        add_job(tmp_path, f"fold{fold}", recall, config={"dataset.test_fold": fold})
    board = make_board(tmp_path)
    assert board.best() == {} and "Best" not in board.summary()

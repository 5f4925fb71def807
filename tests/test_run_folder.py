"""The files of a run folder."""

from pathlib import Path

import pytest

from clap.run_folder import count_clips, find_count, read_history


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

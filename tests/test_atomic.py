"""Atomic writes of JSON files."""

from pathlib import Path

from clap.atomic import read_json, write_json


def test_json_is_read_as_written(tmp_path: Path):
    write_json(tmp_path / "cost.json", {"seconds": 1.5, "folder": tmp_path})
    assert read_json(tmp_path / "cost.json") == {"seconds": 1.5, "folder": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


def test_absent_or_truncated_json_is_empty(tmp_path: Path):
    (tmp_path / "cost.json").write_text('{"seconds": 1')
    assert read_json(tmp_path / "cost.json") == read_json(tmp_path / "absent.json") == {}

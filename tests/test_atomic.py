"""Atomic writes of files."""

import os
from pathlib import Path

import pytest

from clap.atomic import read_json, read_json_lines, write_atomic, write_json


def test_json_is_read_as_written(tmp_path: Path):
    write_json(tmp_path / "cost.json", {"seconds": 1.5, "folder": tmp_path})
    assert read_json(tmp_path / "cost.json") == {"seconds": 1.5, "folder": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


def test_absent_or_truncated_json_is_empty(tmp_path: Path):
    (tmp_path / "cost.json").write_text('{"seconds": 1')
    assert read_json(tmp_path / "cost.json") == read_json(tmp_path / "absent.json") == {}


def test_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "e.npz"
    write_atomic(path, b"before")

    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fill_disk)
    with pytest.raises(OSError, match="e.npz: not written .No space left on device.; an existing file is unchanged"):
        write_atomic(path, b"after")
    assert [item.name for item in tmp_path.iterdir()] == ["e.npz"] and path.read_bytes() == b"before"


def test_only_line_breaks_end_an_entry(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "a\u2028b\x85"}\r\n{"id": "c"}\n{"id": ', encoding="utf-8")
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [{"id": "a\u2028b\x85"}, {"id": "c"}]

"""Atomic writes of files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clap.atomic import (
    append_json_line,
    is_full_disk,
    name_file,
    read_json,
    read_json_lines,
    write_atomic,
    write_json,
)


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


def raise_as_torch_save(path: Path) -> None:
    """The error of a full disk, hidden by the one of closing the zip file."""
    try:
        raise OSError(28, "No space left on device")
    finally:
        raise RuntimeError("unexpected pos 802368 vs 802260")


def raise_as_safetensors(path: Path) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [raise_as_torch_save, raise_as_safetensors])
def test_full_disk_names_the_file_and_the_reason(write: Callable, tmp_path: Path):
    with (
        pytest.raises(OSError, match=r"trainer.pt: not written \(.*No space left on device\)") as error,
        name_file(tmp_path / "trainer.pt"),
    ):
        write(tmp_path / "trainer.pt")
    assert is_full_disk(error.value)


def test_other_errors_of_writing_are_unchanged(tmp_path: Path):
    with pytest.raises(RuntimeError, match="shapes"), name_file(tmp_path / "trainer.pt"):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_failed_write_leaves_no_partial_file(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_atomic(tmp_path / "e.npz", b"content")
    assert not list(tmp_path.iterdir())


def test_next_write_removes_the_partial_file_of_a_killed_one(tmp_path: Path):
    killed, other = tmp_path / "e[1].npz.12.partial", tmp_path / "e[1].npz.13.partial"
    killed.touch()
    other.touch()  # just written to by another process
    os.utime(killed, (0, 0))
    write_atomic(tmp_path / "e[1].npz", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e[1].npz", other.name]


def test_line_after_a_truncated_one_is_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "met')
    append_json_line(path, {"step": 2})
    assert list(read_json_lines(path)) == [{"step": 1}, {"step": 2}]

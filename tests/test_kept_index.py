"""The kept index of a corpus: read once, rebuilt when its source or options change, right where it cannot be kept."""

import logging
import os
from pathlib import Path

import pytest
from replicas import write_wavcaps

from clap.dataset import kept_index
from clap.dataset.csv import CSV
from clap.dataset.wavcaps import WavCaps


def write(folder: Path, text: str) -> Path:
    """An index, always with the same modification time."""
    (folder / "m.csv").write_text(text)
    os.utime(folder / "m.csv", (1, 1))
    return folder / "m.csv"


def list_ids(corpus: CSV) -> list[str]:
    return [clip.id for clip in corpus.table]


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The kept files that are written."""
    found = []
    replace = kept_index.os.replace
    monkeypatch.setattr(kept_index.os, "replace", lambda old, new: (found.append(new), replace(old, new)))
    return found


def count_builds(reads: list[Path]) -> int:
    return sum(str(path).endswith(".m.csv.clips.arrow") for path in reads)


def test_index_is_read_once(tmp_path, reads):
    path = write(tmp_path, "path,caption\na.wav,x\nb.wav,y\n")
    for _ in range(3):
        assert list_ids(CSV(tmp_path, path)) == ["a.wav", "b.wav"]
    assert count_builds(reads) == 1 and (tmp_path / ".m.csv.clips.arrow").is_file()
    assert sorted(os.listdir(tmp_path)) == [".m.csv.clips.arrow", "m.csv"]


def test_content_options_and_root_rebuild_it(tmp_path, reads):
    path = write(tmp_path, "path,caption\na.wav,x\n")
    before = CSV(tmp_path, path)
    write(tmp_path, "path,caption\nb.wav,x\n")  # of the same size and time
    assert list_ids(CSV(tmp_path, path)) == ["b.wav"] and list_ids(before) == ["a.wav"]
    assert list(CSV(tmp_path, path, val_fraction=0.9, test_fraction=0.0).clips("val"))
    assert CSV(tmp_path.parent, path).table[0].path == tmp_path.parent / "b.wav"
    assert count_builds(reads) == 4


def test_damaged_file_and_another_format_rebuild_it(tmp_path, reads, monkeypatch):
    path = write(tmp_path, "path,caption\na.wav,x\n")
    CSV(tmp_path, path)
    kept = tmp_path / ".m.csv.clips.arrow"
    for content in (b"", b"ARROW1", kept.read_bytes()[:-20]):
        kept.write_bytes(content)
        assert list_ids(CSV(tmp_path, path)) == ["a.wav"]
    monkeypatch.setattr(kept_index, "FORMAT", 0)
    assert list_ids(CSV(tmp_path, path)) == ["a.wav"] and count_builds(reads) == 5


def test_error_is_raised_each_time_and_leaves_nothing(tmp_path):
    path = write(tmp_path, "path,caption\na.wav,x\nb.wav,\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="m.csv, line 3: the caption is empty"):
            CSV(tmp_path, path)
    assert os.listdir(tmp_path) == ["m.csv"]


def test_warning_is_logged_each_time(tmp_path, caplog):
    path = write(tmp_path, "path,caption,split\na.wav,x,\n")
    for count in (1, 2):
        CSV(tmp_path, path)
        assert caplog.text.count("no row has a text in split, which is ignored") == count


def test_read_only_folder_is_kept_in_the_cache_folder(tmp_path, reads, monkeypatch):
    path = write(tmp_path, "path,caption\na.wav,x\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_index.os, "access", lambda folder, mode: folder != tmp_path)
    for _ in range(2):
        assert list_ids(CSV(tmp_path, path)) == ["a.wav"]
    assert count_builds(reads) == 1 and not (tmp_path / ".m.csv.clips.arrow").exists()


def test_repeated_rows_far_apart_are_one_clip(tmp_path):
    rows = [f"{i}.wav,{word}\n" for word in ("one", "two") for i in range(50)]
    clips = list(CSV(tmp_path, write(tmp_path, "path,caption\n" + "".join(rows))).table)
    assert [clip.id for clip in clips] == [f"{i}.wav" for i in range(50)]
    assert {clip.captions for clip in clips} == {("one", "two")}


def test_wavcaps_is_kept_with_its_messages(tmp_path, caplog):
    root = write_wavcaps(tmp_path, seconds=0.1)
    with caplog.at_level(logging.INFO):
        first = list(WavCaps(root).clips("train"))
        text, _ = caplog.text, caplog.clear()
        assert list(WavCaps(root).clips("train")) == first and first
    assert "skipped" in text and sorted(map(str, text.split("\n"))) == sorted(caplog.text.split("\n"))
    kept = list(root.rglob(".*.clips.arrow"))
    assert len(kept) == 1 and not list(WavCaps(root, subsets=["SoundBible"]).clips("test"))

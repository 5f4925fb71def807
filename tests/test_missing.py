"""Missing recordings: folders are listed once, and what was found is right when files come and go."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from clap.corpus import Clip
from clap.dataset import missing
from clap.dataset.clip_table import ClipTable

NAMES = [f"{folder}/{i}.wav" for folder in ("many", "few", "deep/er") for i in range(4 if folder == "few" else 12)]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder with all recordings, of which the even ones are links; every table is large."""
    monkeypatch.setattr(missing, "FEW", 0)
    for i, name in enumerate([*NAMES, "top.wav"]):
        (tmp_path / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        if i % 2:
            (tmp_path / "audio" / name).touch()
        else:
            (tmp_path / f"{i}.wav").touch()
            (tmp_path / "audio" / name).symlink_to(tmp_path / f"{i}.wav")
    return tmp_path / "audio"


def make_table(root: Path, *, kept: bool, tolerant: bool = False, names: list[str] = NAMES) -> ClipTable:
    clips = [Clip("scene", ("x",)), *(Clip(name.strip(), ("x",), root / name) for name in [*names, "top.wav"])]
    if not kept:
        return ClipTable.from_clips(clips)
    ClipTable.write(root / ".clips.arrow", (("train", clip) for clip in clips), root=root)
    return ClipTable.read(root / ".clips.arrow", root=root, tolerant=tolerant)


def age(root: Path) -> None:
    """Make folders older than the clock of any file system is coarse; those that change get a new time."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (time.time() - 100 - len(folder.name),) * 2)


def expect(table: ClipTable) -> list[bool]:
    return [clip.path is not None and not clip.path.is_file() for clip in table]


@pytest.mark.parametrize("kept", [True, False])
def test_missing_files_links_and_folders_are_found(root, kept):
    table = make_table(root, kept=kept)
    for change in (
        lambda: None,
        lambda: (root / NAMES[1]).unlink(),
        lambda: (root.parent / "2.wav").unlink(),  # what a link leads to, in another folder
        lambda: shutil.rmtree(root / "deep"),
        lambda: (root / NAMES[1]).touch(),
        lambda: (root / "few" / "1.wav").rename(root / "few" / "new.wav"),
        lambda: (root / "many" / "3.wav").unlink() or (root / "many" / "3.wav").mkdir(),
    ):
        change()
        assert missing.find_missing(table).tolist() == expect(table)
        age(root)
        assert missing.find_missing(table).tolist() == expect(table)
    assert missing.find_missing(table.select(np.array([5, 2, 0]))).tolist() == [expect(table)[i] for i in (5, 2, 0)]


def test_unchanged_folders_are_not_listed_again(root, monkeypatch):
    table = make_table(root, kept=True)
    age(root)
    missing.find_missing(table)
    listed = []
    monkeypatch.setattr(
        missing, "scan_folder", lambda place, scan=missing.scan_folder: listed.append(place) or scan(place)
    )
    missing.find_missing(table)
    assert not any("many" in str(place) or "er" in place.name for place in listed)
    (root / "many" / "more.wav").touch()
    missing.find_missing(table)
    assert root / "many" in listed and root / "deep" / "er" not in listed


def test_other_spellings_are_found_in_a_tolerant_table(root):
    names = ["many/e\u0301.wav", "cafe\u0301/a.wav", "many/ b.wav"]
    (root / "cafe\u0301").mkdir()
    for name in names:
        (root / name).touch()
    written = ["many/\u00e9.wav", "caf\u00e9/a.wav", "many/ b.wav", "many/\u00fc.wav"] + NAMES[:12]
    table = make_table(root, kept=True, tolerant=True, names=written)
    assert missing.find_missing(table).tolist() == expect(table) == [False] * 4 + [True] + [False] * 13
    age(root)
    assert missing.find_missing(table).tolist() == expect(table)
    (root / names[0]).unlink()
    assert missing.find_missing(table).tolist() == expect(table)


def test_read_only_folder_is_listed_each_time(root, monkeypatch):
    table = make_table(root, kept=True)
    monkeypatch.setattr(missing, "write_found", lambda *args: (_ for _ in ()).throw(PermissionError(13, "no")))
    (root / NAMES[1]).unlink()
    assert missing.find_missing(table).tolist() == expect(table)

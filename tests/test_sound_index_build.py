"""Indexing a folder: rows and facts, resuming, files that change, and indexes that are refused."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import make_tone
from torch.testing import assert_close

from clap.model import Clap
from clap.sound_index import build
from clap.sound_index.build import IndexSummary, build_index
from clap.sound_index.sound_index import SoundIndex


@pytest.fixture(scope="module")
def clap(tiny_checkpoint: Path) -> Clap:
    return Clap.from_ckpt(tiny_checkpoint)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Seven short sounds, one of 4.3 seconds, and a file that does not decode."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    for i in range(7):
        soundfile.write(folder / ("deep" if i % 2 else ".") / f"{i}.wav", make_tone(200.0 * (i + 1), 0.3), 16_000)
    soundfile.write(folder / "long.wav", make_tone(300.0, 4.3, sample_rate=8000), 8_000)
    (folder / "broken.wav").write_bytes(b"no audio" * 100)
    return folder


@pytest.fixture
def index(sounds: Path, clap: Clap, tiny_checkpoint: Path):
    """Index the sounds into tmp_path/NAME; returns the summary."""

    def run(name: str = "index", **options: object) -> IndexSummary:
        return build_index(sounds, sounds.parent / name, clap, checkpoint=str(tiny_checkpoint), **options)

    return run


def read_table(folder: Path) -> list[dict]:
    return pq.read_table(folder / "embeddings.parquet").to_pylist()


def test_short_file_has_one_row_and_the_embedding_of_the_model(index, clap, sounds, tmp_path):
    assert index() == IndexSummary(added=8, changed=0, deleted=0, unchanged=0, failed=1, windows=15)
    rows = {row["path"]: row for row in read_table(tmp_path / "index") if row["path"] != "long.wav"}
    assert list(rows) == ["0.wav", "2.wav", "4.wav", "6.wav", "deep/1.wav", "deep/3.wav", "deep/5.wav"]
    expected = clap.get_audio_embeddings([sounds / path for path in rows])
    assert_close(torch.tensor([row["embedding"] for row in rows.values()]), expected, atol=1e-6, rtol=0)
    status = os.stat(sounds / "2.wav")
    facts = {"start": 0.0, "end": 0.3, "duration": 0.3, "sample_rate": 16_000, "channels": 1}
    facts |= {"path": "2.wav", "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    assert {key: value for key, value in rows["2.wav"].items() if key != "embedding"} == facts


def test_long_file_has_a_row_for_each_window(index, clap, sounds, tmp_path):
    index()
    rows = [row for row in read_table(tmp_path / "index") if row["path"] == "long.wav"]
    times = [(row["start"], row["end"]) for row in rows]
    assert times == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.5), (2.0, 3.0), (2.5, 3.5), (3.0, 4.0), (3.3, 4.3)]


def test_unreadable_file_is_listed_and_read_again_when_it_changes(index, sounds, tmp_path):
    index()
    [entry] = map(json.loads, (tmp_path / "index" / "errors.jsonl").read_text().splitlines())
    assert entry["path"] == "broken.wav" and "cannot be decoded" in entry["error"]
    shutil.copy(sounds / "0.wav", sounds / "broken.wav")
    assert index() == IndexSummary(added=0, changed=1, deleted=0, unchanged=8, failed=0, windows=16)


def test_new_changed_and_deleted_files_are_noticed(index, sounds, tmp_path):
    index()
    soundfile.write(sounds / "new.wav", make_tone(500.0, 0.4), 16_000)
    soundfile.write(sounds / "0.wav", make_tone(900.0, 0.2), 16_000)
    (sounds / "deep" / "1.wav").unlink()
    assert index() == IndexSummary(added=1, changed=1, deleted=1, unchanged=6, failed=1, windows=15)
    index("fresh")
    updated, fresh = (read_table(tmp_path / name) for name in ("index", "fresh"))
    assert [row["path"] for row in updated] == [row["path"] for row in fresh]
    for one, other in zip(updated, fresh, strict=True):
        assert_close(torch.tensor(one.pop("embedding")), torch.tensor(other.pop("embedding")), atol=1e-6, rtol=0)
    assert updated == fresh


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_interrupted_index_resumes_and_equals_an_undisturbed_one(index, monkeypatch, tmp_path, batch):
    monkeypatch.setattr(build, "BATCH_FILES", 3)
    index("undisturbed")
    append, calls = build.Journal.append, []

    def interrupt(journal: build.Journal, files: list, embeddings: object) -> None:
        if len(calls) == batch:
            with journal.rows.open("ab") as file:
                file.write(b"part of a batch")
            raise KeyboardInterrupt
        calls.append(files)
        append(journal, files, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(build.Journal, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            index()
    with pytest.raises(FileNotFoundError, match="is not complete"):
        SoundIndex.open(tmp_path / "index")
    index()
    for name in ("embeddings.parquet", "errors.jsonl"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not list((tmp_path / "index").glob("unfinished*"))


def test_index_of_other_windows_or_weights_is_refused(index, tiny_clap, sounds, tmp_path):
    index()
    with pytest.raises(ValueError, match=r"has window 1 s, hop 0.5 s, and window 1 s, hop 0.25 s is asked for"):
        index(hop=0.25)
    other = tiny_clap("seed=1")
    other.audio_projection.linear1.bias.data += 1
    with pytest.raises(ValueError, match=r"other \(weights \w{12}\) is not the model of the index, .*checkpoint"):
        build_index(sounds, tmp_path / "index", other, checkpoint="other")
    assert index(hop=0.25, rebuild=True).windows > 15

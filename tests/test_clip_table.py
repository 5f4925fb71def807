"""Clips in columns: equal to the clips that were written, selected and joined without a Python object each."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clap.corpus import Clip
from clap.dataset import clip_table, digest
from clap.dataset.clip_table import ClipTable, JoinedClips
from clap.dataset.digest import digest_clips
from clap.waveform import Member


def make_clips(root: Path) -> list[Clip]:
    return [
        Clip("a", ("a dog barks", "barking"), root / "a.wav", "dog", ("dog",), "freesound:1"),
        Clip("\udce9.wav", ("rain",), Path("/elsewhere/\udce9.wav"), captions_from_labels=True, labels=("rain", "é")),
        Clip("scene", ("a dog barks", "barking")),
        Clip("tar", ("wind",), member=Member(root / "0.tar", 512, 7, "tar.flac")),
        Clip("far", ("wind",), member=Member("s3://bucket/0.tar", 512, 7, "far.flac")),
        Clip("bare", ()),
    ]


def write(folder: Path, clips: list[Clip], splits: str = "train") -> Path:
    ClipTable.write(folder / "clips.arrow", ((splits, clip) for clip in clips), root=folder)
    return folder / "clips.arrow"


@pytest.mark.parametrize("batch", [2, 100])
def test_clips_are_read_as_they_were_written(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(clip_table, "BATCH", batch)
    clips = make_clips(tmp_path)
    table = ClipTable.read(write(tmp_path, clips), root=tmp_path)
    assert [table[i] for i in range(len(table))] == list(table) == clips and table[-1] == clips[-1]
    assert list(ClipTable.from_clips(clips)) == list(table[:]) == clips
    with pytest.raises(IndexError):
        table[len(clips)]


def test_paths_move_with_their_root(tmp_path):
    table = ClipTable.read(write(tmp_path, make_clips(tmp_path)), root=Path("moved"))
    assert (table[0].path, table[3].member.shard) == (Path("moved/a.wav"), Path("moved/0.tar"))
    assert (table[1].path, table[4].member.shard) == (Path("/elsewhere/\udce9.wav"), "s3://bucket/0.tar")


def test_selection_of_a_selection_and_whole_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_table, "BATCH", 2)
    clips = make_clips(tmp_path)
    table = (
        ClipTable.read(write(tmp_path, clips), root=tmp_path).select(np.array([5, 3, 2, 0])).select(np.array([3, 1]))
    )
    assert list(table) == [clips[0], clips[3]] and list(table[1:]) == [clips[3]]
    assert table.numbers("digest").tolist() == digest_clips([clips[0], clips[3]]).tolist()
    assert [batch["label"].to_pylist() for batch in table.batches("label")] == [["dog", None]]


def test_splits_are_in_one_file(tmp_path):
    clips = make_clips(tmp_path)
    rows = zip(("test", "train", "test", "val", "train", "train"), clips, strict=True)
    ClipTable.write(tmp_path / "clips.arrow", rows, root=tmp_path, metadata={"key": "é"})
    table = ClipTable.read(tmp_path / "clips.arrow", root=tmp_path)
    assert list(table.select_split("test")) == [clips[0], clips[2]] and table.metadata == {"key": "é"}
    assert list(table.select_split("train").select(np.array([2]))) == [clips[5]]


def test_joined_clips_are_those_of_each_table(tmp_path):
    clips = make_clips(tmp_path)
    joined = JoinedClips([ClipTable.from_clips(part) for part in (clips[:1], [], clips[1:4], clips[4:])])
    assert [joined[i] for i in range(-len(clips), len(clips))] == [*clips, *clips] and list(joined) == joined[
        :
    ] == clips
    assert joined.numbers("digest").tolist() == digest_clips(clips).tolist()
    assert len({*joined.numbers("captions_digest").tolist()}) == 4  # two pairs of clips have equal captions
    with pytest.raises(IndexError):
        joined[len(clips)]


def test_tolerant_table_finds_other_spellings(tmp_path):
    for name in (" a.wav", "e\u0301.wav"):
        (tmp_path / name).touch()
    clips = [Clip("a.wav", ("x",), tmp_path / " a.wav"), Clip("\u00e9.wav", ("y",), tmp_path / "\u00e9.wav")]
    path = write(tmp_path, clips)
    found = [clip.path.name for clip in ClipTable.read(path, root=tmp_path, tolerant=True)]
    assert found == [" a.wav", "e\u0301.wav"]
    assert [clip.path.name for clip in ClipTable.read(path, root=tmp_path)] == [" a.wav", "\u00e9.wav"]


def test_failed_write_keeps_the_file(tmp_path):
    def rows() -> Iterator[tuple[str, Clip]]:
        yield "train", Clip("a", ("x",))
        raise ValueError("line 2")

    path = write(tmp_path, make_clips(tmp_path))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="line 2"):
        ClipTable.write(path, rows())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_truncated_file_is_an_error(tmp_path):
    path = write(tmp_path, make_clips(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pa.ArrowInvalid):
        ClipTable.read(path)


def test_table_of_a_file_is_sent_to_a_process_by_name(tmp_path):
    clips = make_clips(tmp_path) * 50
    table = ClipTable.read(write(tmp_path, clips), root=tmp_path).select(np.arange(5, 3, -1))
    content = pickle.dumps(table)
    assert list(pickle.loads(content)) == list(table) and len(content) < 1000


def test_digest_of_many_clips_depends_on_their_content_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "MOST_TEXTS", 2)
    clips = make_clips(tmp_path)
    tables = [JoinedClips([ClipTable.from_clips(own)]) for own in (clips, clips[::-1], clips[1:])]
    first, reversed_order, fewer = map(digest.digest_manifest, tables)
    assert first == reversed_order != fewer

"""Shards that were written are read as equal clips, resume after a kill, and are webdataset's."""

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap.__main__ import main
from clap.corpus import Clip, Corpus
from clap.dataset.csv import CSV
from clap.dataset.shard_writer import ShardOptions, write_split
from clap.dataset.shards import Shards
from clap.dataset.synthetic import Synthetic
from clap.waveform import load_waveform

RATE = 16000
ROWS = """path,caption_1,caption_2,label,split,recording
a.wav,a dog barks,barking,dog,train,freesound:1
b.flac,rain,,rain,train,
sub.folder/c.ogg,"wind, é",,wind,train,
d.wav,thunder,,thunder,val,
"""


@pytest.fixture
def source(tmp_path: Path) -> CSV:
    """A corpus with three clips for training and one for validation."""
    root = tmp_path / "source"
    (root / "sub.folder").mkdir(parents=True)
    (root / "clips.csv").write_text(ROWS)
    for number, name in enumerate(("a.wav", "b.flac", "sub.folder/c.ogg", "d.wav")):
        noise = 0.1 * np.random.default_rng(number).standard_normal((RATE // 2, 2))
        soundfile.write(root / name, noise, 2 * RATE)
    return CSV(root, root / "clips.csv")


def shard(corpus: Corpus, folder: Path, **options: float) -> None:
    """Write both splits, as the command does."""
    for split in ("train", "val"):
        write_split(corpus, corpus.clips(split), folder / split, ShardOptions(**options), shuffle=split == "train")


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tar")}


def sorted_clips(clips: list[Clip]) -> list[Clip]:
    return sorted((replace(clip, path=None, member=None) for clip in clips), key=lambda clip: clip.id)


def test_written_clips_are_read_as_equal(source: CSV, tmp_path: Path):
    overrides = ["dataset=csv", f"dataset.root={source.root}", f"dataset.metadata={source.root / 'clips.csv'}"]
    main(["shard", *overrides, str(tmp_path / "shards"), "--max-clips", "2"])
    written = Shards(tmp_path / "shards")
    assert sorted(path.name for path in (tmp_path / "shards" / "train").glob("*.tar")) == ["000000.tar", "000001.tar"]
    for split in ("train", "val"):
        own = {clip.id: clip for clip in source.clips(split)}
        assert sorted_clips(written.clips(split)) == sorted_clips(list(own.values()))
        for clip in written.clips(split):
            assert clip.member.read_bytes() == own[clip.id].path.read_bytes()
    assert not list(written.clips("test"))
    index = json.loads((tmp_path / "shards" / "train" / "shards.json").read_text())
    for name, entry in index["shards"].items():
        content = (tmp_path / "shards" / "train" / name).read_bytes()
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert [entry["clips"] for entry in index["shards"].values()] == [2, 1]


def test_override_in_place_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="add the folder as last argument"):
        main(["shard", "dataset=csv", "dataset.root=a", "dataset.metadata=b.csv"])
    assert not list(tmp_path.iterdir())


def test_caption_key_that_written_shards_lack_is_named(source: CSV, tmp_path: Path):
    shard(source, tmp_path / "shards")
    lost = Shards(tmp_path / "shards", caption_key="txet", shard_cache=tmp_path / "cache").find_lost("train")
    assert lost and all("set dataset.caption_key" in entry.reason for entry in lost)


def test_flac_at_a_rate_equals_the_resampled_recording(source: CSV, tmp_path: Path):
    shard(source, tmp_path / "shards", sample_rate=RATE)
    own = {clip.id: clip for clip in source.clips("train")}
    for clip in Shards(tmp_path / "shards").clips("train"):
        expected = load_waveform(own[clip.id].path, RATE)
        np.testing.assert_allclose(load_waveform(clip.member, RATE), expected, atol=2**-15)


def test_interrupted_command_resumes_to_the_same_files(source: CSV, tmp_path: Path):
    shard(source, tmp_path / "whole", max_clips=1)
    shard(source, tmp_path / "shards", max_clips=1)
    (tmp_path / "shards" / "train" / "000001.tar").write_bytes(b"")  # and all behind it
    shutil.rmtree(tmp_path / "shards" / "val")
    kept = tmp_path / "shards" / "train" / "000000.tar"
    before = kept.stat().st_mtime_ns
    shard(source, tmp_path / "shards", max_clips=1)
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "whole")
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="has shards of other clips or options"):
        shard(source, tmp_path / "shards", max_clips=2)


def test_unreadable_recordings_are_skipped_up_to_the_limit(source: CSV, tmp_path: Path):
    (source.root / "b.flac").unlink()
    shard(source, tmp_path / "shards", max_bad_fraction=0.5)
    assert len(Shards(tmp_path / "shards").clips("train")) == 2
    with pytest.raises(ValueError, match="1 of 3 clips of csv cannot be read"):
        shard(source, tmp_path / "other", max_clips=1)
    shard(source, tmp_path / "other", max_clips=1, max_bad_fraction=0.5)  # resumes
    assert len(Shards(tmp_path / "other").clips("train")) == 2


def test_excluded_recordings_are_not_written(source: CSV, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "exclude.txt").write_text("freesound:1\nb.flac\n")
    overrides = ["dataset=csv", f"dataset.root={source.root}", f"dataset.metadata={source.root / 'clips.csv'}"]
    main(["shard", *overrides, f"dataset.exclude={tmp_path / 'exclude.txt'}", str(tmp_path / "my shards")])
    assert [clip.id for clip in Shards(tmp_path / "my shards").clips("train")] == ["sub.folder/c.ogg"]
    assert len(shlex.split(capsys.readouterr().out.splitlines()[-1])) == 4  # python train.py dataset=shards, root


def test_skipped_last_clip_leaves_no_empty_tar(source: CSV, tmp_path: Path):
    (source.root / "sub.folder" / "c.ogg").unlink()
    clips = source.clips("train")
    for _ in range(2):  # the second resumes
        options = ShardOptions(max_clips=1, max_bad_fraction=0.5)
        index = write_split(source, clips, tmp_path / "shards" / "train", options, shuffle=False)
        assert [(entry["clips"], entry["skipped"]) for entry in index["shards"].values()] == [(1, 0), (1, 1)]
    written = Shards(tmp_path / "shards")
    assert len(written.clips("train")) == 2 and not written.find_lost("train")


def test_rendered_clips_need_a_rate(tmp_path: Path):
    corpus = Synthetic(num_train=2, num_val=1, num_test=1, max_duration=3.0)
    with pytest.raises(ValueError, match="set --sample-rate"):
        shard(corpus, tmp_path / "shards")
    shard(corpus, tmp_path / "shards", sample_rate=RATE)
    assert sorted_clips(Shards(tmp_path / "shards").clips("train")) == sorted_clips(corpus.clips("train"))
    with pytest.raises(SystemExit, match="belong together"):
        main(["shard", "dataset=synthetic", str(tmp_path / "other"), "--sample-rate", "16000"])


def test_webdataset_and_this_package_read_the_same_samples(source: CSV, tmp_path: Path):
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    shard(source, tmp_path / "shards")
    own = {clip.id: clip for clip in Shards(tmp_path / "shards").clips("train")}
    samples = list(webdataset.WebDataset(str(tmp_path / "shards" / "train" / "000000.tar"), shardshuffle=False))
    assert len(samples) == len(own) == 3
    for sample in samples:
        record = json.loads(sample["json"])
        clip = own[record["clip"]["id"]]
        assert sample[clip.member.suffix[1:]] == clip.member.read_bytes() and record["text"] == list(clip.captions)


def test_shards_of_webdataset_are_read_equally(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    (tmp_path / "train").mkdir()
    noise = {f"dir.a/{number:03}.x": np.random.default_rng(number).bytes(700 * number) for number in range(5)}
    with webdataset.ShardWriter(str(tmp_path / "train" / "%03d.tar"), maxcount=3, verbose=0) as writer:
        for key, audio in noise.items():
            writer.write({"__key__": key.removesuffix(".x"), "flac": audio, "json": {"text": [key]}, "cls": 3})
    corpus = Shards(tmp_path)
    tars = sorted(map(str, (tmp_path / "train").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == len(corpus.clips("train")) == 5
    for sample, clip in zip(samples, corpus.clips("train"), strict=True):
        assert clip.id == f"{Path(sample['__url__']).stem}/{sample['__key__']}"
        assert clip.member.read_bytes() == sample["flac"] and list(clip.captions) == json.loads(sample["json"])["text"]

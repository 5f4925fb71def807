"""Shards are read as webdataset reads them; what is damaged is named, counted and survived."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from download_server import serve
from tars import RATE, encode_noise, write_shards, write_tar

from clap.corpus import Clip
from clap.dataset import shard_cache, shard_index
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.loader import make_loader
from clap.dataset.missing import name_missing
from clap.dataset.shards import Shards, expand_braces
from clap.dataset.synthetic import Synthetic
from clap.dataset.tar_index import TarContent, read_tar
from clap.waveform import load_waveform

AUDIO = encode_noise(0)


def open_one(folder: Path, members: list, **options: object) -> Shards:
    """A corpus of one tar with these members in its training split."""
    write_tar(folder / "train" / "000.tar", members)
    return Shards(folder, shard_cache=folder / "cache", **options)


def reasons(corpus: Shards, split: str = "train") -> dict[str, str]:
    """{name without the folder: reason} of what a split lost."""
    return {Path(entry.name).name: entry.reason for entry in corpus.find_lost(split)}


def test_clips_have_captions_from_json_text_or_label(tmp_path: Path):
    members = [
        ("a/1.FLAC", AUDIO),
        ("a/1.json", {"text": ["a dog", " ", "barks ", "a dog"], "tag": []}),
        ("2.txt", "rain falls\n"),
        ("2.wav", encode_noise(1, suffix="wav")),
        ("__meta__.json", {"text": "skipped"}),
        ("./3.cls", "wind"),
        ("./3.ogg", encode_noise(2, suffix="ogg")),
        ("4.json", {"text": "thunder"}),
        ("4.txt", "the JSON is preferred"),
        ("4.flac", AUDIO),
        (".DS_Store", "skipped"),
    ]
    clips = list(open_one(tmp_path, members).clips("train"))
    assert [(clip.id, clip.captions, clip.label) for clip in clips] == [
        ("000/a/1", ("a dog", "barks"), None),
        ("000/2", ("rain falls",), None),
        ("000/3", ("the sound of wind",), "wind"),
        ("000/4", ("thunder",), None),
    ]
    assert [clip.captions_from_labels for clip in clips] == [False, False, True, False]
    assert clips[0].member.read_bytes() == clips[3].member.read_bytes() == AUDIO


def test_caption_key_names_another_entry(tmp_path: Path):
    corpus = open_one(tmp_path, [("1.flac", AUDIO), ("1.json", {"caption": "a dog"})], caption_key="caption")
    assert corpus.clips("train")[0].captions == ("a dog",)
    without = Shards(tmp_path, shard_cache=tmp_path / "cache")
    assert reasons(without) == {
        "000.tar: 1": "no captions among 1.flac, 1.json; add 'text' to KEY.json, or set dataset.caption_key"
    }


def test_damaged_samples_are_named_and_the_others_are_read(tmp_path: Path):
    members = [
        ("1.flac", AUDIO),
        ("1.json", {"text": "a dog"}),
        ("2.flac", AUDIO),
        ("3.json", {"text": "rain"}),
        ("4.flac", AUDIO),
        ("4.wav", AUDIO),
        ("4.txt", "wind"),
        ("5.flac", AUDIO),
        ("5.json", "not JSON"),
        ("6.flac", AUDIO),
        ("6.json", {"text": 3}),
        ("1.flac", AUDIO),
        ("1.txt", "again"),
        ("7.flac", AUDIO),
        ("7.flac", AUDIO),
        ("8.flac", AUDIO),
        ("8.txt", b"\xff"),
    ]
    corpus = open_one(tmp_path, members)
    assert [clip.id for clip in corpus.clips("train")] == ["000/1"]
    found = {name.removeprefix("000.tar: "): reason.partition(",")[0] for name, reason in reasons(corpus).items()}
    assert found == {
        "2": "no captions among 2.flac; add 'text' to KEY.json",
        "3": "no recording among 3.json; a key must have one",
        "4": "2 recordings among 4.flac",
        "5": "its JSON cannot be read (Expecting value: line 1 column 1 (char 0))",
        "6": "text=3 is not a text; write a string or a list of strings",
        "1.flac": "duplicate key",
        "7": "two members 7.flac and 7.flac; delete one",
        "8": "8.txt is not UTF-8",
    }
    settings = DatasetSettings(max_bad_fraction=0.9)
    dataset = ClapDataset(corpus, "train", sample_rate=RATE, settings=settings)
    assert (len(dataset), len(dataset.missing), dataset.num_listed) == (1, 8, 9)
    with pytest.raises(FileNotFoundError, match="8 of 9 recordings of the train split of shards are missing"):
        ClapDataset(corpus, "train", sample_rate=RATE)


def test_damaged_shard_counts_as_many_clips_as_the_others_have(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    truncated, _, empty, text, missing = write_shards(tmp_path, [4, 4, 4, 4, 4])
    content = truncated.read_bytes()
    truncated.write_bytes(content[: len(content) // 2])
    empty.write_bytes(b"")
    text.write_text("no tar" * 500)
    missing.unlink()
    places = sorted(map(str, [truncated, _, empty, text, missing]))
    corpus = Shards(train=places, shard_cache=tmp_path / "cache")
    assert len(corpus.clips("train")) == 6
    found = {
        Path(entry.name).name: (entry.reason.partition(";")[0], entry.count) for entry in corpus.find_lost("train")
    }
    assert found["000.tar"][0].startswith("truncated") and found["000.tar"][1] == 2
    assert found["002.tar"] == ("empty, 0 bytes", 4)
    assert found["003.tar"][0].startswith("not a whole tar") and found["003.tar"][1] == 4
    assert "No such file" in found["004.tar"][0] and found["004.tar"][1] == 4
    assert f"train split: {truncated}: truncated" in caplog.text
    dataset = ClapDataset(corpus, "train", sample_rate=RATE, settings=DatasetSettings(max_bad_fraction=0.7))
    assert dataset.num_listed == 20 and [dataset[i].problem for i in range(6)] == [None] * 6


def test_tar_cut_at_the_end_of_a_member_is_truncated(tmp_path: Path):
    (shard,) = write_shards(tmp_path, [3])
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    shard.write_bytes(shard.read_bytes()[: last.offset])
    assert reasons(Shards(tmp_path)) != {}


def test_tar_with_a_damaged_header_in_the_middle_is_damaged(tmp_path: Path):
    (path,) = write_shards(tmp_path, [3])
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[offset + 10 : offset + 60] = bytes(range(1, 51))
    path.write_bytes(content)
    found = read_tar(path, path, prefix="000")
    assert len(found.clips) == 1 and found.damage == f"no header at byte {offset}; copy it again"


def test_compressed_tar_is_refused_with_the_command(tmp_path: Path):
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "000.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"000.tar.gz: compressed.*`gunzip 000.tar.gz`"):
        Shards(tmp_path).clips("train")


def test_index_is_kept_beside_the_tars_until_one_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_shards(tmp_path, [2, 3])
    first = list(Shards(tmp_path).clips("train"))
    read = []

    def record(file: Path, *arguments: object, **options: object) -> TarContent:
        read.append(file.name)
        return read_tar(file, *arguments, **options)

    monkeypatch.setattr("clap.dataset.shard_index.read_tar", record)
    assert list(Shards(tmp_path).clips("train")) == first and not read
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert [clip.member.shard for clip in Shards(moved).clips("train")][0] == moved / "train" / "000.tar"
    shutil.copytree(moved, tmp_path)
    write_tar(tmp_path / "train" / "001.tar", [("new.flac", AUDIO), ("new.txt", "new")])
    read.clear()
    assert [clip.id for clip in Shards(tmp_path).clips("train")] == ["000/0000", "000/0001", "001/new"]
    assert read == ["001.tar"]


def test_shards_of_one_name_in_two_folders_have_their_own_ids(tmp_path: Path):
    (a,), (b,) = write_shards(tmp_path / "a", [1]), write_shards(tmp_path / "b", [1])
    corpus = Shards(train=[str(a), str(b)], shard_cache=tmp_path / "cache")
    assert [clip.id for clip in corpus.clips("train")] == ["a/train/000/0000", "b/train/000/0000"]


def test_braces_expand_as_in_bash():
    assert expand_braces("s3://b/{008..011}.tar") == [f"s3://b/{number}.tar" for number in ("008", "009", "010", "011")]
    assert expand_braces("{a,b}/{1..2}.tar") == ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]
    with pytest.raises(ValueError, match="is not a pattern"):
        expand_braces("{x}.tar")


def test_root_or_splits_are_required(tmp_path: Path):
    with pytest.raises(ValueError, match="set dataset.root to a folder with train/"):
        Shards()
    with pytest.raises(ValueError, match="set dataset.root"):
        Shards(tmp_path, train="a.tar")


def test_split_may_be_a_folder_of_tars(tmp_path: Path):
    write_shards(tmp_path, [2, 1])
    corpus = Shards(train=tmp_path / "train", shard_cache=tmp_path / "cache")
    assert len(corpus.clips("train")) == 3


def test_shards_that_are_all_missing_are_named(tmp_path: Path):
    corpus = Shards(train=str(tmp_path / "{0..1}.tar"), shard_cache=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"2 of 2 recordings .* are missing, the first is .*/0\.tar"):
        ClapDataset([corpus], kind="train", sample_rate=RATE, window=1.0)


def test_lost_clips_of_a_shard_are_named_once():
    lost = [Clip(f"0.tar, lost clip {number}", ()) for number in range(3)]
    assert name_missing([*lost, Clip("1.tar: key", ())]) == "0.tar, 1.tar: key"
    assert name_missing(Clip(str(number), ()) for number in range(22)).endswith(", 19 and 2 more")


def batches(dataset: ClapDataset, **options: int) -> list[list[tuple[int, int]]]:
    options = {"batch_size": 4, "num_workers": 0, "shuffle": True, **options}
    sampler = make_loader(dataset, list, **options).batch_sampler
    found = []
    for epoch in range(2):
        sampler.seek(epoch)
        found += list(sampler)
    return found


def test_epoch_reads_groups_of_shards_in_turn_and_every_clip_once(tmp_path: Path):
    write_shards(tmp_path, [5, 7, 6, 6])
    dataset = ClapDataset(Shards(tmp_path, open_shards=2), "train", sample_rate=RATE)
    orders = [dataset.order_epoch(epoch, seed=0) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()
    for order in orders:
        assert sorted(order) == list(range(24))
        shards = [int(Path(dataset.clips[i].member.shard).stem) for i in order]
        changes = [i for i in range(1, 24) if len(set(shards[:i]) & set(shards[i:])) == 0]
        assert len(changes) == 1 and len(set(shards[: changes[0]])) == 2  # two groups of two
    ranks = [batches(dataset, rank=rank, world_size=2) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == batches(dataset)
    assert sorted(sum(batches(dataset), [])) == [(epoch, i) for epoch in range(2) for i in range(24)]


def test_mixture_of_shards_and_files_reads_each_clip_once(tmp_path: Path):
    write_shards(tmp_path / "a", [4, 4])
    corpora = [Shards(tmp_path / "a", open_shards=1), Synthetic(num_train=8, num_val=1, num_test=1)]
    dataset = ClapDataset(corpora, "train", sample_rate=RATE, weights=[2, 1])
    order = dataset.order_epoch(0, seed=0)
    assert sorted(order) == list(range(24))
    clips = [dataset.locate_pair(int(position), 0)[0] for position in order]
    shards = [dataset.clips[i].member.shard.stem for i in clips if dataset.clips[i].member]
    assert shards in (["000"] * 8 + ["001"] * 8, ["001"] * 8 + ["000"] * 8)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between requests."""
    monkeypatch.setattr("clap.fetch.WAIT", 0.0)


def test_remote_shards_are_fetched_once_and_read_as_local_ones(tmp_path: Path, quick: None):
    write_shards(tmp_path / "served", [3, 2])
    local = Shards(tmp_path / "served")
    with serve(tmp_path / "served") as server:
        options = {"train": f"{server.address}/train/{{000..001}}.tar", "shard_cache": tmp_path / "cache"}
        corpus = Shards(**options)
        clips = corpus.clips("train")
        assert [clip.id for clip in clips] == [clip.id for clip in local.clips("train")]
        for clip, other in zip(clips, local.clips("train"), strict=True):
            found = corpus.load(clip, sample_rate=RATE, max_duration=None)
            np.testing.assert_array_equal(found, load_waveform(other.member, RATE))
        assert sorted(name for name, _ in server.requests) == ["train/000.tar", "train/001.tar"]
        again = Shards(**options)
        assert list(again.clips("train")) == list(clips) and len(server.requests) == 2
        corpus.shard_cache.path(clips[0].member.shard).unlink()  # by another process, for other shards
        samples, _ = corpus.load_samples(clips[0], sample_rate=RATE, max_duration=None, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(samples, load_waveform(local.clips("train")[0].member, RATE))
        assert len(server.requests) == 3


def test_server_that_stops_serving_a_shard_costs_its_clips_only(tmp_path: Path, quick: None):
    first, _ = write_shards(tmp_path / "served", [1, 3])
    with serve(tmp_path / "served") as server:
        options = {"train": f"{server.address}/train/{{000..001}}.tar", "shard_cache": tmp_path / "cache"}
        corpus = Shards(**options)
        clips = ClapDataset(corpus, "train", sample_rate=RATE)
        shutil.rmtree(corpus.shard_cache.path(clips.clips[0].member.shard).parent)
        first.unlink()
        problems = [clips[i].problem for i in range(4)]
        requests = len(server.requests)
        assert clips[0].problem == problems[0] and len(server.requests) == requests  # not requested for each clip
    address = f"{options['train'].partition('{')[0]}000.tar"
    assert problems[0] == f"{address}: 0000.flac: {address}: not downloaded (404 Not Found)"
    assert problems[1:] == [None] * 3


def test_shard_that_could_not_be_fetched_is_requested_at_the_next_start(tmp_path: Path, quick: None):
    first, _ = write_shards(tmp_path / "served", [1, 3])
    content = first.read_bytes()
    first.unlink()
    with serve(tmp_path / "served") as server:
        options = {"train": f"{server.address}/train/{{000..001}}.tar", "shard_cache": tmp_path / "cache"}
        corpus = Shards(**options)
        assert len(corpus.clips("train")) == 3 and len(corpus.find_lost("train")) == 1
        first.write_bytes(content)
        corpus = Shards(**options)
        assert len(corpus.clips("train")) == 4 and not corpus.find_lost("train")


def test_index_of_a_process_with_other_options_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tar(tmp_path / "train" / "000.tar", [("1.flac", AUDIO), ("1.json", {"text": "a", "other": "b"})])
    write, options = shard_index.write_split, {"shard_cache": tmp_path / "cache"}

    def write_and_lose_race(*arguments: object) -> None:
        write(*arguments)
        monkeypatch.setattr(shard_index, "write_split", write)
        Shards(tmp_path, caption_key="other", **options).clips("train")

    monkeypatch.setattr(shard_index, "write_split", write_and_lose_race)
    assert Shards(tmp_path, **options).clips("train")[0].captions == ("a",)


def test_cache_removes_the_shards_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = write_shards(tmp_path / "served", [3, 3, 3])
    size = paths[0].stat().st_size
    cache = shard_cache.ShardCache(tmp_path / "cache", 2.5 * size / 1e9)
    addresses = [f"file://{path}" for path in paths]
    found = [cache.fetch(address) for address in addresses[:2]]
    os.utime(found[0].with_name("used"), (2e9, 2e9))
    cache.fetch(addresses[2])
    assert [path.exists() for path in found] == [True, True]  # all are in use
    os.utime(found[1].with_name("used"), (1e9, 1e9))
    cache.remove_oldest()
    assert [path.exists() for path in found] == [True, False]
    assert cache.fetch(addresses[1]).read_bytes() == paths[1].read_bytes()

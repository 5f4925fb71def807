"""WavCaps in its published layout: subsets, exclusion lists, and invalid entries."""

import json
import logging
from pathlib import Path

import pytest
from replicas import write_wavcaps

from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.mixture import Mixture
from clap.dataset.registry import open_corpus
from clap.dataset.wavcaps import SIZES, WavCaps

EXCLUDED = {"FreeSound/12", "FreeSound/14", "AudioSet_SL/Ybbbbbbbbbb2.wav"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wavcaps(tmp_path_factory.mktemp("data") / "wavcaps")


def ids(corpus: WavCaps, split: str = "train") -> list[str]:
    return [clip.id for clip in corpus.clips(split)]


def test_replica_is_read(root: Path, caplog):
    dataset = ClapDataset(WavCaps(root, exclusion_lists=[], val_fraction=0.0), "train", sample_rate=8_000)
    assert len(dataset) == dataset.num_listed == 10
    assert all(dataset[i].problem is None for i in range(10))
    assert "fsd_final.json lists 4 of 262300 published clips" in caplog.text
    assert sum(SIZES.values()) == 403_050


def test_clip_has_caption_tags_and_source(root: Path):
    clips = {clip.id: clip for clip in WavCaps(root, val_fraction=0.0).clips("train")}
    first, video = clips["FreeSound/11"], clips["AudioSet_SL/Y-_aaaaaaaa1.wav"]
    assert (first.captions, first.keywords, first.source) == (("Sound 11.",), ("a", "b"), "freesound:11")
    assert (video.path.name, video.source) == ("Y-_aaaaaaaa1.flac", "youtube:-_aaaaaaaa1")


def test_subsets_are_chosen(root: Path):
    assert ids(WavCaps(root, subsets=["SoundBible"], val_fraction=0.0)) == ["SoundBible/2219", "SoundBible/2218"]


@pytest.mark.parametrize("open_it", ["class", "name", "mixture", "config"])
def test_published_lists_exclude_clips_however_the_corpus_is_opened(root: Path, open_it: str, caplog):
    caplog.set_level(logging.INFO)
    if open_it == "name":
        clips = ClapDataset(["WavCaps"], "train", root, sample_rate=8_000).clips
    else:
        config = {"_target_": "clap.dataset.wavcaps.WavCaps", "root": str(root)}
        corpus = {
            "class": lambda: WavCaps(root),
            "mixture": lambda: Mixture(root.parent, corpora={"wavcaps": {}}),
            "config": lambda: open_corpus(config),
        }[open_it]()
        clips = [clip for split in SPLITS for clip in corpus.clips(split)]
    found = {clip.id for clip in clips}
    assert found and not EXCLUDED & found
    assert "wavcaps: skipped 3 of 10 clips, dataset.exclusion_lists=" in caplog.text


def test_without_lists_all_clips_are_kept_with_a_warning(root: Path, caplog):
    assert EXCLUDED < set(ids(WavCaps(root, exclusion_lists=[], val_fraction=0.0)))
    assert "wavcaps: skipped 0 of 10 clips, dataset.exclusion_lists=[]" in caplog.text


def test_list_without_a_known_key_is_an_error(tmp_path: Path):
    write_wavcaps(tmp_path)
    (tmp_path / "list.json").write_text(json.dumps({"Freesound": ["12"]}))
    with pytest.raises(ValueError, match="list.json: no key FreeSound or AudioSet"):
        WavCaps(tmp_path, exclusion_lists=["list.json"]).clips("train")


def test_validation_is_held_out(root: Path):
    corpus = WavCaps(root, exclusion_lists=[], val_fraction=0.5)
    assert len(ids(corpus)) + len(ids(corpus, "val")) == 10 and ids(corpus, "val") and not ids(corpus, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [\n{"id": "1", "caption": "x"},\n{"id": }]}', "line 3: not JSON"),
        ('{"data": {}}', 'not a list of entries; write [entries] or {"data": [entries]}'),
        ('[{"id": "1", "caption": "x"}, 3]', "entry 2: id=None is not a text"),
        ('[{"id": "1", "caption": "x"}, {"id": "2", "caption": " "}]', "entry 2: caption=' ' is not a text"),
        ('[{"id": "1", "caption": "x"}, {"id": "1", "caption": "y"}]', "entry 2: id='1' is already in"),
        ('[{"id": "../1", "caption": "x"}]', "entry 1: id='../1' is not a file name"),
    ],
)
def test_invalid_entry_names_file_and_entry(tmp_path: Path, text: str, message: str):
    path = tmp_path / "json_files" / "SoundBible" / "sb_final.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        WavCaps(tmp_path, subsets=["SoundBible"]).clips("train")
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_invalid_exclusion_list_is_an_error(tmp_path: Path):
    write_wavcaps(tmp_path)
    (tmp_path / "list.json").write_text(json.dumps(["12"]))
    with pytest.raises(ValueError, match="list.json: FreeSound is not a list of ids"):
        WavCaps(tmp_path, exclusion_lists=["list.json"]).clips("train")


def test_missing_exclusion_list_is_named(root: Path):
    with pytest.raises(FileNotFoundError, match="absent.json is missing; root="):
        WavCaps(root, exclusion_lists=["absent.json"]).clips("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsets": ["BBC"]}, "subset 'BBC' is not one of FreeSound, BBC_Sound_Effects"),
        ({"subsets": []}, r"subsets=\[\]: name one or more"),
        ({"val_fraction": 1.0}, "^val_fraction=1.0 must be 0 or more and below 1"),
    ],
)
def test_invalid_option_is_named(root: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        WavCaps(root, **options)

"""Clotho v2.1 in its published layout: the replica, the real captions, and invalid lines."""

from collections import Counter
from pathlib import Path

import pytest

from clap.commands.synthesize import synthesize
from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.clotho import Clotho

HEADER = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"


def write_captions(folder: Path, *lines: str, split: str = "evaluation") -> Path:
    (folder / f"clotho_captions_{split}.csv").write_bytes("\n".join([HEADER, *lines, ""]).encode("latin-1"))
    return folder


def test_replica_is_read(tmp_path: Path):
    synthesize(tmp_path, layout="clotho", num_clips=10, sample_rate=8_000, min_duration=3.0, max_duration=3.0)
    for split, size in {"train": 6, "val": 2, "test": 2}.items():
        dataset = ClapDataset(Clotho(tmp_path), split, sample_rate=8_000)
        assert len(dataset) == dataset.num_listed == size
        assert all(len(clip.captions) == 5 and clip.label is None for clip in dataset.clips)
        assert dataset[0].problem is None


def test_real_captions_have_the_published_counts(published_index):
    corpus = Clotho(published_index("clotho"))
    clips = {split: corpus.clips(split) for split in SPLITS}
    assert {split: len(clips[split]) for split in SPLITS} == corpus.counts == {"train": 3839, "val": 1045, "test": 1045}
    assert Counter(len(clip.captions) for split in SPLITS for clip in clips[split]) == {5: 5929}


def test_metadata_gives_keywords_and_freesound_id(tmp_path: Path):
    write_captions(tmp_path, "a.wav,a,b,c,d,e", " b.wav,a,b,c,d,e")
    rows = "file_name,keywords,sound_id\na.wav,caf\xe9;rain ;,123\nb.wav,,Not found\n"
    (tmp_path / "clotho_metadata_evaluation.csv").write_bytes(rows.encode("iso-8859-1"))
    first, second = Clotho(tmp_path).clips("test")
    assert (first.keywords, first.source) == (("caf\xe9", "rain"), "freesound:123")
    assert (second.keywords, second.source) == ((), None)


def test_leading_space_is_part_of_a_name(tmp_path: Path):
    write_captions(tmp_path, " e ieio.wav,a,b,c,d,e")
    assert Clotho(tmp_path).clips("test")[0].path == tmp_path / "evaluation" / " e ieio.wav"


def test_recording_is_found_in_another_normal_form(tmp_path: Path):
    path = write_captions(tmp_path, "NAME,a,b,c,d,e") / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text().replace("NAME", "caf\u00e9.wav"), encoding="utf-8")
    file = tmp_path / "evaluation" / "cafe\u0301.wav"
    file.parent.mkdir()
    file.touch()
    (clip,) = Clotho(tmp_path).clips("test")
    assert (clip.id, clip.path) == ("caf\u00e9.wav", file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.wav,a,b,c,d", "line 3: 5 fields, but the header has 6"),
        ("b.wav,a,b,c,d,e,f", "line 3: 7 fields, but the header has 6"),
        ("b.wav,a,b, ,d,e", "line 3: caption_3 is empty"),
        (",a,b,c,d,e", "line 3: file_name is empty"),
        ("../b.wav,a,b,c,d,e", "line 3: file_name='../b.wav' is not a file name"),
        ("a.wav,a,b,c,d,e", "line 3: file_name='a.wav' is already in"),
        ('b.wav,"a,b,c,d,e', "line 3: not CSV (unexpected end of data)"),
        ("b.wav,caf\xe9,b,c,d,e", "line 3: not UTF-8"),
    ],
)
def test_invalid_line_names_file_and_line(tmp_path: Path, line: str, message: str):
    write_captions(tmp_path, "a.wav,a,b,c,d,e", line, "c.wav,a,b,c,d,e")
    with pytest.raises(ValueError) as error:
        Clotho(tmp_path).clips("test")
    assert f"{tmp_path}/clotho_captions_evaluation.csv, {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_column_is_named(tmp_path: Path):
    (tmp_path / "clotho_captions_evaluation.csv").write_text("file_name,caption_1\na.wav,x\n")
    with pytest.raises(ValueError, match="column caption_2 is missing; the columns are file_name, caption_1"):
        Clotho(tmp_path).clips("test")


def test_missing_captions_name_the_key_and_the_source(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"clotho_captions_validation.csv is missing; .*zenodo.org"):
        Clotho(tmp_path).clips("val")


def test_missing_root_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="^root=.*absent is not a folder"):
        Clotho(tmp_path / "absent")

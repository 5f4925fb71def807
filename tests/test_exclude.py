"""Block lists: reading, writing, and their use in the training split."""

import logging
from pathlib import Path

import pytest

from clap.corpus import Clip, Corpus
from clap.dataset.clip_table import JoinedClips
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.exclude import find_related, is_excluded, read_exclusions, write_exclusions
from clap.waveform import Member


class Three(Corpus):
    """Three clips per split, without files."""

    name = "three"

    def clips(self, split: str) -> list[Clip]:
        return [Clip(f"{split} #{i}.wav", (f"caption {i}",)) for i in range(3)]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "exclude.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make(path: Path | None, kind: str = "train", max_clips: int | None = None) -> ClapDataset:
    return ClapDataset(Three(), kind, sample_rate=1000, settings=DatasetSettings(exclude=path, max_clips=max_clips))


def test_line_has_a_name_and_a_reason(tmp_path):
    path = write(tmp_path, "# why\n\na #1.wav\tsame samples\r\nb.wav\n#\n#7.wav\n")
    assert read_exclusions(path) == {"a #1.wav": "same samples", "b.wav": "", "#7.wav": ""}


def test_written_list_is_read_back(tmp_path):
    names = {"a #1.wav": "caption of b.wav:\ta dog", "é.wav": ""}
    write_exclusions(tmp_path / "list.txt", names, comment="made for a test")
    assert read_exclusions(tmp_path / "list.txt") == {"a #1.wav": "caption of b.wav: a dog", "é.wav": ""}


AWKWARD = [
    " lead.wav", "trail.wav ", "tab\t.wav", "line\n.wav", "return\r.wav", "sep\u2028.wav", "nel\x85.wav", "# 1.wav",
    "#", "nbsp\xa0", '"quoted"', '"half', "\ud83d.wav", "é.wav", " ", "plain.wav",
]  # fmt: skip


def test_any_name_survives_writing_and_reading(tmp_path):
    write_exclusions(tmp_path / "list.txt", dict.fromkeys(AWKWARD, "why"), comment="c")
    assert read_exclusions(tmp_path / "list.txt") == dict.fromkeys(AWKWARD, "why")


def test_quoted_name_excludes_only_itself(tmp_path):
    names = read_exclusions(write(tmp_path, '" a.wav"\tsilent\n'))
    assert [is_excluded(Clip(name, ("x",)), names) for name in (" a.wav", "a.wav")] == [True, False]


def test_list_of_an_earlier_version_excludes_names_with_spaces(tmp_path, caplog):
    path = write(tmp_path, " train #1.wav\tsilent\n  train #2.wav  \n")
    assert [clip.id for clip in make(path).clips] == ["train #0.wav"] and "match no" not in caplog.text
    assert is_excluded(Clip(" train #1.wav", ("x",)), read_exclusions(path))


def test_path_may_be_spelled_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_excluded(Clip("same id", ("x",), Path("data/a.wav")), {str(tmp_path / "data" / "a.wav")})


def test_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset.exclude=.*absent.txt is missing; set it to a text file"):
        make(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.wav\n\tsilent\n", "exclude.txt, line 2: no clip name before the tab"),
        (b"caf\xe9.wav\n", "exclude.txt is not UTF-8"),
    ],
)
def test_invalid_list_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_exclusions(write(tmp_path, text))


def test_training_skips_and_counts_listed_clips(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dataset = make(write(tmp_path, "train #1.wav\tsilent\n"))
    assert [clip.id for clip in dataset.clips] == ["train #0.wav", "train #2.wav"] and dataset.num_listed == 2
    assert "skipped 1 of 3 training clips of three" in caplog.text and "match no" not in caplog.text


def test_clip_can_be_listed_by_its_path(tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for path in paths:
        path.touch()
    corpus = Three()
    corpus.clips = lambda split: [Clip("same id", ("a",), path) for path in paths]
    dataset = ClapDataset(corpus, sample_rate=1000, settings=DatasetSettings(exclude=write(tmp_path, f"{paths[0]}\n")))
    assert [clip.path for clip in dataset.clips] == paths[1:]


def test_evaluation_splits_ignore_the_list(tmp_path):
    assert len(make(write(tmp_path, "test #1.wav\n"), "test")) == 3


def test_unknown_names_are_a_warning_with_their_count(tmp_path, caplog):
    make(write(tmp_path, "train #1.wav\ntest #1.wav\nnobody.wav\n"))
    assert "2 of 3 names in dataset.exclude=" in caplog.text
    assert "match no training clip of three, the first is test #1.wav" in caplog.text


def test_list_of_all_clips_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="names all 3 training clips of three; shorten the list"):
        make(write(tmp_path, "".join(f"train #{i}.wav\n" for i in range(3))))


def test_max_clips_counts_the_remaining_clips(tmp_path):
    dataset = make(write(tmp_path, "train #0.wav\n"), max_clips=1)
    assert [clip.id for clip in dataset.clips] == ["train #1.wav"]


def test_digest_changes_with_the_list(tmp_path):
    assert make(write(tmp_path, "train #0.wav\n")).digest != make(None).digest


def test_config_sets_the_list(tiny_config, tmp_path):
    path = write(tmp_path, "train-00000\n")
    dataset = ClapDataset(config=tiny_config("dataset.num_train=3", f"dataset.exclude={path}"))
    assert [clip.id for clip in dataset.clips] == ["train-00001", "train-00002"]


def test_excluded_members_ids_and_other_spellings_are_found(tmp_path):
    clips = [
        Clip("a/id.wav", ("x",)),
        Clip("b", ("x",), member=Member(Path("0.tar"), 0, 1, "in/tar.flac")),
        Clip("c", ("x",), tmp_path / "e\u0301.wav"),
        Clip("d", ("x",), tmp_path / "tar.flac"),
    ]
    names = ["a/id.wav", "0.tar: in/tar.flac", str(tmp_path / "\u00e9.wav")]
    found = find_related(JoinedClips([clips[:2], clips[2:]]), names)
    assert found == [0, 1, 2, 3] and [is_excluded(clips[i], names) for i in found] == [True, True, False, False]
    assert find_related(JoinedClips([clips]), ["other.wav"]) == []

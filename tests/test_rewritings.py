"""Rewritten captions: the file, the clips that its lines are about, and what training draws."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clap.corpus import Clip, Corpus, Part
from clap.dataset.clip_table import ClipTable, JoinedClips
from clap.dataset.clips import ClapDataset
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.mixture import Parts
from clap.dataset.rewritings import RewrittenCaptions, read_rewritings
from clap.training.comparison import digest_dataset

CLIPS = [Clip("0", ("a dog", "a pet")), Clip("1", ("a cat",)), Clip("2", ("rain",)), Clip("3", ("rain",))]
GROUPS = [0, 1, 2, 2]


class Tones(Corpus):
    """CLIPS without recordings, in every split."""

    name = "tones"

    def clips(self, split: str) -> list[Clip]:
        return list(CLIPS)

    def load(self, clip: Clip, **options: object) -> np.ndarray:
        return np.zeros(1600, dtype=np.float32)


def write_lines(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def list_pools(path: Path, clips: Sequence[Clip] = CLIPS, groups: Sequence[int] = GROUPS) -> list[list[str]]:
    """The rewritings that may be drawn for each clip."""
    found = RewrittenCaptions(read_rewritings(path), clips, groups, fraction=1.0)
    bounds = zip(found.starts, found.starts[1:], strict=False)
    return [found.texts.take(found.chosen[start:end]).to_pylist() for start, end in bounds]


def make_dataset(path: Path, kind: str = "train", fraction: float = 0.6) -> ClapDataset:
    settings = DatasetSettings(captions="rewritten", rewritings=str(path), rewritten_fraction=fraction)
    return ClapDataset(Tones(), kind, sample_rate=16_000, settings=settings)


def count_captions(dataset: ClapDataset, index: int, draws: int = 400) -> dict[str, int]:
    found = [dataset[(epoch, index)].caption for epoch in range(draws)]
    return {caption: found.count(caption) for caption in found}


def test_lines_are_about_a_caption_a_clip_or_a_caption_of_a_clip(tmp_path: Path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"settings": {"model": "any"}},
        {"caption": "a dog", "rewritings": ["a big dog"]},
        {"caption": "rain", "rewritings": ["rain falls"], "comment": "ignored"},
        {"id": "3", "rewritings": ["a storm"]},
        {"id": "1", "caption": "a cat", "rewritings": ["a cat meows"]},
        {"id": "1", "caption": "an earlier caption", "rewritings": ["not drawn"]},
        {"caption": "a pet", "rewritings": ["a tame animal"]},
        {"caption": "a dog", "rewritings": ["a small dog"]},
    )
    expected = [
        ["a big dog", "a small dog", "a tame animal"],
        ["a cat meows"],
        ["rain falls"],
        ["a storm", "rain falls"],
    ]
    tables = [ClipTable.from_clips(CLIPS[:1]), ClipTable.from_clips(CLIPS[1:])]
    for clips in (CLIPS, JoinedClips(tables)):
        assert [sorted(pool) for pool in list_pools(path, clips)] == expected


def test_rewriting_of_different_captions_is_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Clips that share it would be positives and negatives of it at once."""
    caplog.set_level("INFO")
    path = write_lines(
        tmp_path / "a.jsonl",
        {"caption": "a dog", "rewritings": ["a sound", "a bark", "fur"]},
        {"caption": "a pet", "rewritings": ["fur"]},
        {"caption": "a cat", "rewritings": ["a sound", "a meow"]},
        {"id": "2", "rewritings": ["drops"]},
        {"id": "3", "rewritings": ["drops"]},
    )
    assert list_pools(path) == [["a bark", "fur", "fur"], ["a meow"], ["drops"], ["drops"]]
    assert "1 of 5 texts are not drawn" in caplog.text


def test_caption_of_clips_in_different_groups_is_rewritten_in_both(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", {"caption": "a dog", "rewritings": ["a bark"]})
    assert list_pools(path, [CLIPS[0], Clip("4", ("a dog",))], [0, 1]) == [["a bark"], ["a bark"]]


def test_unknown_clips_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    lines = [
        {"caption": "a cat", "rewritings": ["x", "y"]},
        *({"id": name, "rewritings": ["z"]} for name in "89"),
        {"id": "3", "rewritings": []},
    ]
    list_pools(write_lines(tmp_path / "a.jsonl", *lines))
    assert "1 of 4 clips have rewritten captions, 2 texts" in caplog.text
    assert "2 of 4 lines of" in caplog.text and "the first is line 2" in caplog.text
    with pytest.raises(
        ValueError, match=r"no training clip has a rewritten caption: 2 of 2 lines of .*b.jsonl are about"
    ):
        list_pools(write_lines(tmp_path / "b.jsonl", *lines[1:3]))


def test_share_of_rewritings_is_that_of_reclap_by_default(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", {"caption": "a cat", "rewritings": ["meow", "purr"]})
    found = count_captions(make_dataset(path), 1)
    assert found.keys() == {"a cat", "meow", "purr"} and 0.33 < found["a cat"] / 400 < 0.47
    assert DatasetSettings().rewritten_fraction == 0.6
    assert count_captions(make_dataset(path, fraction=1.0), 1).keys() == {"meow", "purr"}
    assert count_captions(make_dataset(path), 0).keys() == {"a dog", "a pet"}  # has no rewriting


def test_draws_depend_on_seed_epoch_and_position_only(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", {"caption": "rain", "rewritings": [f"rain {i}" for i in range(9)]})
    first, again = ([make_dataset(path)[(epoch, 2)].caption for epoch in range(20)] for _ in range(2))
    assert first == again and len(set(first)) > 5


def test_evaluation_keeps_the_captions(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", {"caption": "a cat", "rewritings": ["meow"]})
    dataset = make_dataset(path, "test", fraction=1.0)
    assert dataset.rewritten is None and dataset[1].caption == "a cat" and "meow" not in dataset.captions
    assert dataset.digest == ClapDataset(Tones(), "test", sample_rate=16_000).digest


def test_tokenizer_sees_the_rewritings(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", {"caption": "a cat", "rewritings": ["meow", "purr"]})
    assert sorted(make_dataset(path).captions) == ["a cat", "a dog", "a pet", "meow", "purr", "rain", "rain"]


def test_other_rewritings_are_other_data_of_a_resumed_run(tmp_path: Path):
    texts = (["meow"], ["purr"], ["meow", "purr"])
    paths = [write_lines(tmp_path / f"{n}", {"caption": "a cat", "rewritings": own}) for n, own in enumerate(texts)]
    digests = [digest_dataset(make_dataset(path)).tolist() for path in (*paths, paths[0])]
    plain = digest_dataset(ClapDataset(Tones(), sample_rate=16_000)).tolist()
    assert digests[0] == digests[3] and len({own[1] for own in [*digests, plain]}) == 4
    assert all(own[0] == plain[0] and own[2:] == plain[2:] for own in digests)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[" * 100_000, "not JSON"),
        (b'{"caption": "a", "rewritings": ["b"]', "not JSON"),
        (b'{"caption": "a\xff", "rewritings": ["b"]}', "not JSON"),
        (b'["a", "b"]', "no list of rewritings"),
        (b'{"caption": "a", "rewritings": "b"}', "no list of rewritings"),
        (b'{"caption": null, "rewritings": ["b"]}', "neither caption nor id"),
        (b'{"id": 7, "rewritings": ["b"]}', "id 7 is not a string"),
        (b'{"caption": "a", "rewritings": ["b", " "]}', "a rewriting is blank"),
        (b'{"caption": "a", "rewritings": [1]}', "a rewriting is 1, of type int"),
        (b'{"caption": "a", "rewritings": ["\\ud83d"]}', "half of a surrogate pair"),
    ],
)
def test_error_names_file_and_line(tmp_path: Path, line: bytes, problem: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"caption": "a", "rewritings": ["b"]}\n\n' + line)
    with pytest.raises(ValueError, match=f"a.jsonl, line 3: .*{problem}"):
        read_rewritings(path)


def test_file_without_rewritings_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="dataset.rewritings=.*absent.jsonl is missing"):
        read_rewritings(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="has no rewritings; write one object a line"):
        read_rewritings(write_lines(tmp_path / "a.jsonl", {"settings": {}}))
    with pytest.raises(ValueError, match="captions=rewritten needs a file"):
        DatasetSettings(captions="rewritten")


def test_corpus_of_a_mixture_has_a_policy_of_its_own(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", {"caption": "a cat", "rewritings": ["meow"]})
    other = Tones()
    other.name = "others"
    parts = Parts([Part(Tones(), captions="rewritten"), Part(other)])
    settings = DatasetSettings(rewritings=str(path), rewritten_fraction=1.0)
    dataset = ClapDataset(parts, sample_rate=16_000, settings=settings)
    assert [dataset[(0, index)].caption for index in (1, 5)] == ["meow", "a cat"]
    with pytest.raises(ValueError, match="captions=rewritten needs a file"):
        ClapDataset(parts, sample_rate=16_000)

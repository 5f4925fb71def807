"""Digests of training clips, and clips of another split that are found by them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.dataset.leaks import BLOCK, PLACES, digest_file, digest_training_clips, find_leaks
from clap.dataset.synthetic import Synthetic
from clap.member import Member


class Listed(Corpus):
    """Clips {split: [(id, path, source)]}."""

    def __init__(self, **splits: list[tuple[str, Path | None, str | None]]) -> None:
        self.name, self.splits = "listed", splits

    def clips(self, split: str) -> list[Clip]:
        return [Clip(name, (f"a {name}",), path, source=source) for name, path, source in self.splits.get(split, [])]


def open_split(corpus: Corpus, kind: str) -> ClapDataset:
    return ClapDataset([corpus], kind, sample_rate=16_000)


def find(corpus: Corpus) -> tuple[list[int], list[int]]:
    """Indices of test clips that are among the training clips, by recording and by samples."""
    leaks = find_leaks(open_split(corpus, "test"), digest_training_clips(open_split(corpus, "train")))
    return leaks.by_recording.tolist(), leaks.by_samples.tolist()


def test_digests_are_sorted_and_unique(tones: list[Path]):
    clips = [("a", tones[0], "freesound:1"), ("b", tones[0], "freesound:1"), ("c", tones[1], None)]
    digests = digest_training_clips(open_split(Listed(train=clips), "train"))
    assert digests.dtype == np.uint64 and len(digests) == 3
    assert (np.diff(digests.astype(object)) > 0).all()


def test_recordings_are_found_as_corpora_state_them_and_as_names_show_them(tones: list[Path], tmp_path: Path):
    named = Path(shutil.copy(tones[1], tmp_path / "12__user__dog.wav"))
    slice_of = Path(shutil.copy(tones[3], tmp_path / "34-0-0-1.wav"))
    corpus = Listed(
        train=[("a", tones[0], "youtube:abc@10"), ("b", named, None), ("c", slice_of, None)],
        test=[
            ("d", tones[4], "youtube:abc@50"),
            ("e", tones[5], "freesound:12"),
            ("f", tones[6], "freesound:34"),
            ("g", tones[7], "freesound:10"),
        ],
    )
    assert find(corpus) == ([0, 1, 2], [])


def test_copy_is_found_by_its_samples_under_another_name(tones: list[Path], tmp_path: Path):
    renamed = Path(shutil.copy(tones[0], tmp_path / "other.wav"))
    waveform, rate = soundfile.read(tones[2])
    soundfile.write(tmp_path / "coded.flac", waveform, rate)
    test = [("d", renamed, None), ("e", tones[1], None), ("f", tmp_path / "coded.flac", None)]
    assert find(Listed(train=[("a", tones[0], None), ("b", tones[2], None)], test=test)) == ([], [0])


def test_file_and_member_of_a_tar_have_one_digest(tones: list[Path], tmp_path: Path):
    content = tones[-1].read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 700 + content + b"x" * 90)
    member = Member(tmp_path / "shard.tar", 700, len(content), "a.wav")
    assert len(content) > BLOCK * PLACES
    assert digest_file(member) == digest_file(tones[-1])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "ULAW"])
@pytest.mark.parametrize("place", [0.0, 0.15, 0.5, 1.0])
def test_short_sounds_in_silence_have_different_digests(place: float, subtype: str, tmp_path: Path):
    """Most bytes at the places that are read are equal in such files, as in padded clips of ESC-50, not always 0."""
    digests = set()
    for level in (0.1, 0.2):
        waveform = np.zeros(80_000)
        first = int(place * 79_000)
        waveform[first : first + 1000] = level
        soundfile.write(tmp_path / "sound.wav", waveform, 16_000, subtype)
        digests.add(digest_file(tmp_path / "sound.wav"))
    assert len(digests) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_rendered_scenes_leak_if_their_seed_and_split_are_those_of_training(seed: int):
    trained = digest_training_clips(open_split(Synthetic(num_train=4, num_val=0, num_test=0), "train"))
    corpus = Synthetic(num_train=2, num_val=0, num_test=3, seed=seed)
    assert len(find_leaks(open_split(corpus, "train"), trained).clips) == (2 if seed == 0 else 0)
    assert len(find_leaks(open_split(corpus, "test"), trained).clips) == 0


@pytest.mark.slow
def test_published_splits_of_audiocaps_share_no_recording(published_index: Callable, monkeypatch: pytest.MonkeyPatch):
    from clap.dataset.audiocaps import AudioCaps

    monkeypatch.setattr("clap.dataset.leaks.digest_samples", lambda corpus, clip: None)
    monkeypatch.setattr("clap.dataset.clips.find_missing", lambda table: np.zeros(len(table), bool))
    corpus = AudioCaps(published_index("audiocaps"))
    trained = digest_training_clips(open_split(corpus, "train"))
    assert len(trained) > 49_000
    for split in ("val", "test"):
        assert len(find_leaks(open_split(corpus, split), trained).clips) == 0


def test_clips_of_other_loaders_are_known_by_corpus_and_id(tones: list[Path]):
    class Rendered(Listed):
        def load(self, clip: Clip, **options: object) -> np.ndarray:
            return np.ones(16_000, np.float32)

    corpus = Rendered(train=[("a", None, None)], test=[("a", None, None), ("b", None, None)])
    assert find(corpus) == ([], [0])


def test_unreadable_recording_has_no_digest(unreadable: Path, tmp_path: Path):
    gone = tmp_path / "gone.wav"
    gone.write_bytes(b"x" * 100)
    dataset = open_split(Listed(train=[("a", unreadable, None), ("b", gone, None)]), "train")
    gone.unlink()
    assert len(digest_training_clips(dataset)) == 1

"""AudioCaps in its published layout: the replica, the real lists, and invalid lines."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap.commands.synthesize import synthesize
from clap.corpus import SPLITS
from clap.dataset.audiocaps import AudioCaps
from clap.dataset.clips import ClapDataset

HEADER = "audiocap_id,youtube_id,start_time,caption"
VIDEO, OTHER = "-_aaaaaaaa1", "bbbbbbbbbb2"


def write_list(folder: Path, *lines: str, split: str = "train") -> Path:
    (folder / f"{split}.csv").write_bytes("\n".join([HEADER, *lines, ""]).encode("latin-1"))
    return folder


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_replica_is_read(tmp_path: Path):
    synthesize(tmp_path, layout="audiocaps", num_clips=10, sample_rate=8_000, min_duration=3.0, max_duration=3.0)
    for split, (size, captions) in {"train": (6, 1), "val": (2, 5), "test": (2, 5)}.items():
        dataset = ClapDataset(AudioCaps(tmp_path), split, sample_rate=8_000)
        assert len(dataset) == dataset.num_listed == size
        assert all(len(clip.captions) == captions for clip in dataset.clips)
        assert dataset[0].problem is None


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_training_and_evaluation_read_ten_seconds_of_a_longer_file(tmp_path: Path, split: str):
    captions = 1 if split == "train" else 5
    write_list(tmp_path, *(f"{number},{VIDEO},30,a dog" for number in range(captions)), split=split)
    path = touch(tmp_path / "audio" / split / f"{VIDEO}_30.flac")
    soundfile.write(path, np.zeros(441_882), 44_100)  # 10.02 s, as ffmpeg often cuts it
    dataset = ClapDataset(AudioCaps(tmp_path), split, sample_rate=48_000, window=None)  # of a model with fusion
    assert len(dataset[0].waveform) == 480_000


def test_real_lists_have_the_published_counts(published_index):
    corpus = AudioCaps(published_index("audiocaps"))
    clips = {split: corpus.clips(split) for split in SPLITS}
    assert {split: len(clips[split]) for split in SPLITS} == corpus.counts == {"train": 49838, "val": 495, "test": 975}
    captions = {split: Counter(len(clip.captions) for clip in clips[split]) for split in SPLITS}
    assert captions == {"train": {1: 49838}, "val": {5: 495}, "test": {5: 975}}


def test_rows_of_one_clip_are_its_captions(tmp_path: Path):
    write_list(tmp_path, f"1,{VIDEO},30,a dog", f"2,{OTHER},0,rain", f"3,{VIDEO},30,a bark", f"4,{VIDEO},40,a cat")
    clips = {clip.id: clip for clip in AudioCaps(tmp_path).clips("train")}
    assert {key: clip.captions for key, clip in clips.items()} == {
        f"{VIDEO}_30": ("a dog", "a bark"), f"{OTHER}_0": ("rain",), f"{VIDEO}_40": ("a cat",)
    }  # fmt: skip
    assert clips[f"{OTHER}_0"].source == f"youtube:{OTHER}@0"


@pytest.mark.parametrize("name", [f"{VIDEO}_30.flac", f"Y{VIDEO}.wav", f"{VIDEO}.mp3", "2.ogg"])
def test_recording_is_found_under_the_names_of_common_tools(tmp_path: Path, name: str):
    write_list(tmp_path, f"1,{VIDEO},30,a dog", f"2,{VIDEO},30,a bark")
    path = touch(tmp_path / "audio" / "train" / name)
    assert AudioCaps(tmp_path).clips("train")[0].path == path


def test_name_without_start_is_ignored_for_two_clips_of_a_video(tmp_path: Path):
    write_list(tmp_path, f"1,{VIDEO},30,a dog", f"2,{VIDEO},40,a cat")
    touch(tmp_path / "audio" / "train" / f"{VIDEO}.wav")
    assert not any(clip.path.exists() for clip in AudioCaps(tmp_path).clips("train"))


def test_recordings_to_be_converted_are_a_warning(tmp_path: Path, caplog):
    write_list(tmp_path, f"1,{VIDEO},30,a dog")
    touch(tmp_path / "audio" / "train" / f"{VIDEO}_30.m4a")
    AudioCaps(tmp_path).clips("train")
    assert f"are not read; convert it with `ffmpeg -i {VIDEO}_30.m4a {VIDEO}_30.flac` and so on" in caplog.text


def test_files_with_other_suffixes_are_ignored(tmp_path: Path):
    write_list(tmp_path, f"1,{VIDEO},30,a dog")
    touch(tmp_path / "audio" / "train" / f"{VIDEO}_30.json")
    assert AudioCaps(tmp_path).clips("train")[0].path.name == f"{VIDEO}_30.wav"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"2,{OTHER},0", "line 3: 3 fields, but the header has 4"),
        (f"2,{OTHER},0,rain, wind", "line 3: 5 fields, but the header has 4"),
        (f"2,{OTHER},0,", "line 3: caption is empty"),
        (f"x,{OTHER},0,rain", "line 3: audiocap_id='x' is not a number"),
        (f"1,{OTHER},0,rain", "line 3: audiocap_id='1' is already in"),
        ("2,../../x,0,rain", "line 3: youtube_id='../../x' is not eleven letters"),
        ("2,,0,rain", "line 3: youtube_id='' is not eleven letters"),
        (f"2,{OTHER},1:30,rain", "line 3: start_time='1:30' is not a whole number of seconds"),
        (f"2,{OTHER},-1,rain", "line 3: start_time='-1' is not a whole number of seconds"),
        (f'2,{OTHER},0,"rain', "line 3: not CSV (unexpected end of data)"),
        (f"2,{OTHER},0,caf\xe9", "line 3: not UTF-8"),
    ],
)
def test_invalid_line_names_file_and_line(tmp_path: Path, line: str, message: str):
    write_list(tmp_path, f"1,{VIDEO},30,a dog", line, "3,ccccccccccc,0,wind")
    with pytest.raises(ValueError) as error:
        AudioCaps(tmp_path).clips("train")
    assert f"{tmp_path}/train.csv, {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_caption_with_the_id_of_another_clip_is_an_error(tmp_path: Path):
    rows = [f"{i},{VIDEO},30,dog {i}" for i in range(5)]
    rows[3] = f"3,{OTHER},30,dog 3"
    write_list(tmp_path, *rows, split="test")
    with pytest.raises(ValueError, match=f"test.csv, line 5: the clip {OTHER} from 30 s has 1 captions, but 5 are pub"):
        AudioCaps(tmp_path).clips("test")


def test_missing_list_names_the_key_and_the_source(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"test.csv is missing; root=.*github.com/cdjkim/audiocaps"):
        AudioCaps(tmp_path).clips("test")


def test_unknown_version_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="version='v3' is not one of v1, v2; set dataset.version"):
        AudioCaps(tmp_path, version="v3")


def test_shorter_list_than_published_is_a_warning(tmp_path: Path, caplog):
    write_list(tmp_path, *(f"{i},{VIDEO},30,dog {i}" for i in range(5)), split="test")
    touch(tmp_path / "audio" / "test" / f"{VIDEO}.wav")
    ClapDataset(AudioCaps(tmp_path), "test", sample_rate=8_000)
    assert "the index of audiocaps (test) lists 1 of 975 published clips" in caplog.text

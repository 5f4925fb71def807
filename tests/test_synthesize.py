"""Synthetic scenes on disk in the published layouts."""

import argparse
import csv
import re
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from clap.commands.synthesize import add_arguments, run, synthesize
from clap.dataset.csv import CSV
from clap.dataset.esc50 import ESC50
from clap.dataset.scenes import synthesize as module
from clap.dataset.scenes.sounds import SOUNDS
from clap.dataset.scenes.synthesize import WRITERS


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(folder: Path, layout: str, num_clips: int = 5, **changes: float) -> Path:
    synthesize(folder, layout=layout, num_clips=num_clips, **{"sample_rate": 16_000} | changes)
    return folder


def test_clotho_index_has_the_published_columns(tmp_path: Path):
    write(tmp_path, "clotho")
    header = (tmp_path / "clotho_captions_development.csv").read_text().splitlines()[0]
    assert header == "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"


def test_clotho_index_names_the_files_of_its_folder(tmp_path: Path):
    write(tmp_path, "clotho")
    for split in ("development", "validation", "evaluation"):
        named = {row["file_name"] for row in read_rows(tmp_path / f"clotho_captions_{split}.csv")}
        assert named == {path.name for path in (tmp_path / split).iterdir()}


def test_clotho_clips_last_15_to_30_seconds(tmp_path: Path):
    write(tmp_path, "clotho")
    durations = [soundfile.info(path).duration for path in tmp_path.rglob("*.wav")]
    assert 15 <= min(durations) and max(durations) <= 30


def test_audiocaps_index_has_the_published_columns(tmp_path: Path):
    write(tmp_path, "audiocaps")
    assert list(read_rows(tmp_path / "train.csv")[0]) == ["audiocap_id", "youtube_id", "start_time", "caption"]


@pytest.mark.parametrize(("split", "captions"), [("train", 1), ("val", 5), ("test", 5)])
def test_audiocaps_has_one_caption_per_training_clip_and_five_otherwise(tmp_path: Path, split: str, captions: int):
    write(tmp_path, "audiocaps", 10)
    rows = read_rows(tmp_path / f"{split}.csv")
    assert set(Counter(row["youtube_id"] for row in rows).values()) == {captions}


def test_audiocaps_files_are_named_by_their_youtube_id(tmp_path: Path):
    write(tmp_path, "audiocaps")
    for split in ("train", "val", "test"):
        named = {row["youtube_id"] for row in read_rows(tmp_path / f"{split}.csv")}
        assert named == {path.stem for path in (tmp_path / "audio" / split).iterdir()}
        assert all(re.fullmatch(r"[\w-]{11}", name) for name in named)


def test_audiocaps_clips_last_10_seconds(tmp_path: Path):
    write(tmp_path, "audiocaps")
    assert {soundfile.info(path).duration for path in tmp_path.rglob("*.wav")} == {10.0}


def test_esc50_index_has_the_published_columns(tmp_path: Path):
    write(tmp_path, "esc50")
    header = (tmp_path / "meta" / "esc50.csv").read_text().splitlines()[0]
    assert header == "filename,fold,target,category,esc10,src_file,take"


def test_esc50_names_contain_fold_source_take_and_target(tmp_path: Path):
    write(tmp_path, "esc50", 12)
    for row in read_rows(tmp_path / "meta" / "esc50.csv"):
        assert row["filename"] == "{fold}-{src_file}-{take}-{target}.wav".format(**row)
        assert (tmp_path / "audio" / row["filename"]).is_file()


def test_esc50_categories_are_balanced_across_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.CorpusWriter, "write_audio", lambda *args: None)
    write(tmp_path, "esc50", 2 * 5 * len(SOUNDS))
    rows = read_rows(tmp_path / "meta" / "esc50.csv")
    counts = Counter((row["fold"], row["category"]) for row in rows)
    assert len(counts) == 5 * len(SOUNDS) and set(counts.values()) == {2}
    assert len({row["filename"] for row in rows}) == len(rows)


def test_esc50_clips_last_5_seconds(tmp_path: Path):
    write(tmp_path, "esc50")
    assert {soundfile.info(path).duration for path in tmp_path.rglob("*.wav")} == {5.0}


def test_esc50_loader_reads_its_layout(tmp_path: Path):
    write(tmp_path, "esc50", 10)
    (first, second) = ESC50(tmp_path).clips("test")
    assert (first.label, second.label) == tuple(SOUNDS)[:2]


def test_csv_loader_reads_its_layout(tmp_path: Path):
    write(tmp_path, "csv", 10)
    corpus = CSV(tmp_path, tmp_path / "metadata.csv")
    clips = {split: corpus.clips(split) for split in ("train", "val", "test")}
    assert {split: len(clips[split]) for split in clips} == {"train": 6, "val": 2, "test": 2}
    assert all(clip.path.is_file() and len(clip.captions) == 5 for split in clips for clip in clips[split])


@pytest.mark.parametrize("layout", WRITERS)
def test_files_are_16_bit_mono_at_the_requested_rate(tmp_path: Path, layout: str):
    write(tmp_path, layout, sample_rate=22_050)
    infos = [soundfile.info(path) for path in tmp_path.rglob("*.wav")]
    assert {(info.subtype, info.channels, info.samplerate) for info in infos} == {("PCM_16", 1, 22_050)}


@pytest.mark.parametrize("layout", WRITERS)
def test_number_of_clips_is_as_requested(tmp_path: Path, layout: str):
    assert len(list(write(tmp_path, layout, 7).rglob("*.wav"))) == 7


def test_same_seed_writes_the_same_files(tmp_path: Path):
    first, second = write(tmp_path / "a", "csv", seed=3), write(tmp_path / "b", "csv", seed=3)
    for path in (path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_durations_can_be_set(tmp_path: Path):
    write(tmp_path, "csv", min_duration=4.0, max_duration=4.0)
    assert {soundfile.info(path).duration for path in tmp_path.rglob("*.wav")} == {4.0}


def test_folder_with_files_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        write(tmp_path, "csv")


@pytest.mark.parametrize("layout", WRITERS)
def test_interrupted_run_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str):
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.CorpusWriter, "write_audio", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, layout)
    assert not list(tmp_path.rglob("*.csv"))


def test_index_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "csv")
    assert not list(tmp_path.glob("metadata.csv*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "wavcaps"}, "--layout"),
        ({"num_clips": 2}, "--num-clips"),
        ({"min_duration": 1.0}, "--min-duration"),
        ({"min_duration": 9.0, "max_duration": 5.0}, "--max-duration"),
    ],
)
def test_error_of_an_invalid_value_names_its_option(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **{"layout": "csv"} | changes)


def test_command_line_writes_a_layout(tmp_path: Path, capsys: pytest.CaptureFixture):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(tmp_path / "data"), "--layout", "csv", "--num-clips", "5", "--sample-rate", "16000"]))
    assert "5 clips in the layout of csv" in capsys.readouterr().out

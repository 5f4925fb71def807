"""python -m clap check finds one planted fault of each kind, and nothing else."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_tone
from tars import write_tar

from clap.__main__ import main
from clap.check.limits import Limits
from clap.check.report import format_share
from clap.check.survey import check_corpus, make_report, make_split
from clap.commands.check import compose_datasets
from clap.commands.synthesize import synthesize
from clap.corpus import Clip, Corpus
from clap.dataset.csv import CSV

RATE = 8_000
Row = tuple[str, str, str]  # path, caption, split


def write_tone(folder: Path, name: str, **options) -> np.ndarray:
    """Write a recording that differs from every other in the folder."""
    seed = sum(map(ord, name))
    waveform = make_tone(200.0 + seed, options.pop("duration", 1.0), sample_rate=RATE, seed=seed)
    soundfile.write(folder / name, waveform, RATE, **options)
    return waveform


def write_index(folder: Path, rows: list[Row]) -> None:
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "split"), *rows])


def read_findings(folder: Path) -> list[dict[str, str]]:
    with (folder / "findings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def overrides(folder: Path, *more: str) -> list[str]:
    return ["dataset=csv", f"dataset.root={folder}", f"dataset.metadata={folder / 'clips.csv'}", *more]


def run_check(folder: Path, *options: str) -> list[dict[str, str]]:
    main(["check", *overrides(folder), "--output", str(folder / "out"), "--workers", "1", *options])
    return read_findings(folder / "out")


NUMERALS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def sound_rows(folder: Path) -> list[Row]:
    """Faultless clips: mono and stereo, two sample rates, three formats."""
    rows = []
    for i, (word, split) in enumerate(zip(NUMERALS, ("train",) * 4 + ("val", "val", "test", "test"), strict=True)):
        name = f"sound {word}.{('wav', 'flac', 'ogg')[i % 3]}"
        waveform = make_tone(150.0 * (i + 1), 1.0, sample_rate=RATE, seed=i)
        samples = np.stack([waveform, 0.5 * waveform], axis=1) if i % 2 else waveform
        soundfile.write(folder / name, samples, RATE if i < 4 else 2 * RATE)
        rows.append((name, f"{word} {word}teen {word}ty", split))
    return rows


def plant(folder: Path) -> tuple[list[Row], Counter]:
    """Rows with one fault of each kind, and the expected findings (kind, split, clip)."""
    rows, expected = [], []

    def add(name: str, caption: str, split: str, *kinds: str) -> None:
        rows.append((name, caption, split))
        expected.extend((kind, split, name) for kind in kinds)

    add("gone.wav", "gone away", "train", "missing")
    (folder / "page.wav").write_text("<html>404</html>" * 20)
    add("page.wav", "web page", "train", "unreadable")
    (folder / "empty.wav").write_bytes(b"")
    add("empty.wav", "zero bytes", "val", "unreadable")
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    add("nan.wav", "no number", "test", "unreadable")
    write_tone(folder, "blip.wav", duration=0.1)
    add("blip.wav", "quick blip", "train", "too short")
    write_tone(folder, "drone.wav", duration=3.0)
    add("drone.wav", "endless drone", "train", "too long")
    soundfile.write(folder / "zeros.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "offset.wav", np.full(RATE, 0.1), RATE)
    phase = make_tone(300.0, 0.5, sample_rate=RATE)
    soundfile.write(folder / "phase.wav", np.stack([phase, -phase], axis=1), RATE)
    for name in ("zeros.wav", "offset.wav", "phase.wav"):
        add(name, f"{name[:-4]} hidden", "train", "silent")
    soundfile.write(folder / "loud.wav", np.clip(4 * make_tone(310.0, 0.5, sample_rate=RATE), -1, 1), RATE)
    add("loud.wav", "distorted guitar", "train", "clipped")
    # The same samples in another container, on two channels, with another rate in the header.
    original = (make_tone(330.0, 1.0, sample_rate=RATE) * 32767).astype(np.int16)
    soundfile.write(folder / "original.wav", original, RATE)
    soundfile.write(folder / "copy.flac", np.stack([original, original], axis=1), 2 * RATE)
    add("original.wav", "first take", "train")
    add("copy.flac", "second take", "train", "duplicate audio")
    twin = write_tone(folder, "twin.wav")
    soundfile.write(folder / "other twin.aiff", twin, RATE)
    add("twin.wav", "born earlier", "train", "overlap: audio")
    add("other twin.aiff", "born later", "test")
    for name, split, kinds in (
        ("r1nicOVtvkQ_130.wav", "train", ["overlap: recording"]),
        ("Yr1nicOVtvkQ.wav", "test", []),
        ("123456__someone__pond.wav", "val", ["overlap: recording"]),
        ("123456-3-0-2.wav", "test", []),
        ("silent words.wav", "train", ["empty caption"]),
        ("twice.wav", "train", ["repeated caption"]),
        ("shared a.wav", "train", ["shared caption"]),
        ("shared b.wav", "train", []),
        ("leak.wav", "train", ["overlap: caption"]),
        ("leaked.wav", "val", []),
        ("near.wav", "train", ["overlap: near-caption"]),
        ("nearer.wav", "test", []),
    ):
        write_tone(folder, name)
        add(name, CAPTIONS.get(name, f"{name[:6]} {split}"), split, *kinds)
    rows.append(("twice.wav", "seen DOUBLE!", "train"))
    return rows, Counter(expected)


CAPTIONS = {
    "silent words.wav": "...",
    "twice.wav": "Seen double",
    "shared a.wav": "A common phrase.",
    "shared b.wav": "a common phrase",
    "leak.wav": "Water leaks, slowly",
    "leaked.wav": "water leaks slowly",
    "near.wav": "a small dog barks at the door",
    "nearer.wav": "a small dog barks at the gate door",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, Counter]:
    folder = tmp_path_factory.mktemp("planted")
    rows, expected = plant(folder)
    write_index(folder, sound_rows(folder) + rows)
    run_check(folder, "--longest", "2")
    return folder, expected


def test_folder_without_faults_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_index(tmp_path, sound_rows(tmp_path))
    assert run_check(tmp_path) == []
    assert "exclude.txt (0 clips, recording not compared)" in capsys.readouterr().out


def test_every_planted_fault_is_found_and_nothing_else(planted):
    folder, expected = planted
    found = read_findings(folder / "out")
    assert Counter((row["kind"], row["split"], row["clip"]) for row in found) == expected


def test_finding_names_the_other_clip(planted):
    other = {row["clip"]: row["other"] for row in read_findings(planted[0] / "out")}
    assert other["copy.flac"] == "csv train: original.wav" and other["leak.wav"] == "csv val: leaked.wav"


def test_recording_overlap_names_the_source(planted):
    detail = {row["clip"]: row["detail"] for row in read_findings(planted[0] / "out")}
    assert detail["r1nicOVtvkQ_130.wav"] == "youtube:r1nicOVtvkQ"
    assert detail["123456__someone__pond.wav"] == "freesound:123456"


def test_block_list_holds_training_clips_with_shared_recordings_and_samples(planted):
    lines = (planted[0] / "out" / "exclude.txt").read_text().splitlines()
    assert lines[0].startswith("# training clips of csv that share recording or audio")
    assert sorted(line.split("\t")[0] for line in lines[1:]) == ["r1nicOVtvkQ_130.wav", "twin.wav"]


def test_report_counts_faults_by_split(planted):
    lines = (planted[0] / "out" / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| unreadable"))
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["1", "1", "1"]


def test_figure_is_written(planted):
    assert (planted[0] / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_lost_clips_of_shards_are_findings(tmp_path: Path):
    write_tar(tmp_path / "shards" / "train" / "0.tar", [("1.json", {"text": "a dog"})])
    found = check_corpus(
        compose_datasets(["dataset=shards", f"dataset.root={tmp_path / 'shards'}"])[0], limits=Limits()
    )
    (finding,) = found.findings
    assert finding.kind == "lost" and finding.clip.endswith("0.tar: 1") and "no recording" in finding.detail


def test_index_is_never_rewritten(tmp_path: Path):
    write_index(tmp_path, [*sound_rows(tmp_path), ("gone.wav", "gone", "train")])
    before = (tmp_path / "clips.csv").read_bytes()
    run_check(tmp_path)
    assert (tmp_path / "clips.csv").read_bytes() == before


def test_unexpected_number_of_clips_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CSV, "counts", {"train": 5, "val": 2, "test": 2}, raising=False)
    write_index(tmp_path, sound_rows(tmp_path))
    (row,) = run_check(tmp_path)
    assert (row["kind"], row["split"], row["detail"]) == ("count", "train", "4 listed, 5 published")


def test_no_audio_checks_captions_without_files(tmp_path: Path):
    write_index(tmp_path, [("a.wav", "a dog", "train"), ("b.wav", "A dog!", "test")])
    (row,) = run_check(tmp_path, "--no-audio")
    assert (row["kind"], row["clip"]) == ("overlap: caption", "a.wav")


def read_cells(folder: Path, label: str) -> list[str]:
    """The cells of a row of the report, without its label."""
    lines = (folder / "out" / "report.md").read_text().splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {label}")).split("|")[2:-1]]


def test_what_is_not_looked_at_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_index(tmp_path, [("a.wav", "a dog", "train"), ("b.wav", "A cat!", "test"), ("c.wav", "...", "test")])
    run_check(tmp_path, "--no-audio")
    assert read_cells(tmp_path, "csv train") == ["csv test", "-", "-", "0 [100 %, 50 %]", "0 [100 %, 50 %]"]
    assert read_cells(tmp_path, "empty caption")[:3] == ["0", "-", "1"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "- not checked: missing, unreadable, too short, too long, silent, clipped, duplicate audio\n" in report
    assert "(0 clips, recording not compared, audio not compared)" in capsys.readouterr().out
    assert "; not compared: recording, audio\n" in (tmp_path / "out" / "exclude.txt").read_text()


def test_share_of_compared_recordings_is_shown(tmp_path: Path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(RATE), RATE)
    names = ["r1nicOVtvkQ_130.wav", "zeros.wav", "train a.wav", "Yr1nicOVtvkQ.wav"]
    for name in (names[0], *names[2:]):
        write_tone(tmp_path, name)
    splits = ["train", "train", "train", "test"]
    write_index(
        tmp_path, [(name, f"number {i}", split) for i, (name, split) in enumerate(zip(names, splits, strict=True))]
    )
    run_check(tmp_path)
    assert read_cells(tmp_path, "csv train")[1:3] == ["1 (1) [33 %, 100 %]", "0 [67 %, 100 %]"]


def test_faults_of_samples_are_not_counted_where_nothing_was_decoded(tmp_path: Path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(RATE), RATE)
    write_index(tmp_path, [("zeros.wav", "a dog", "train"), ("gone.wav", "a cat", "test")])
    run_check(tmp_path)
    assert read_cells(tmp_path, "silent")[:3] == ["1", "-", "-"] and read_cells(tmp_path, "missing")[:3] == [
        "0",
        "-",
        "1",
    ]
    assert read_cells(tmp_path, "hours")[2] == "-"


def test_empty_split_of_another_corpus_has_a_row(tmp_path: Path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        write_index(folder, [("a.wav", "a dog", "train")])
    run_check(own, "--no-audio", "--against", " ".join(overrides(other, "dataset.name=held_out")))
    assert read_cells(own, "csv train") == ["held_out val", "-", "-", "-", "-"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 %"), (1, "<1 %"), (500, "50 %"), (999, ">99 %"), (1000, "100 %")])
def test_share_is_0_or_100_percent_only_if_exact(count: int, text: str):
    assert format_share(count, 1000) == text


def test_block_list_removes_the_overlap(tmp_path: Path):
    rows = sound_rows(tmp_path)
    twin = write_tone(tmp_path, "twin.wav")
    soundfile.write(tmp_path / "again.wav", twin, RATE)
    write_index(tmp_path, [*rows, ("twin.wav", "born earlier", "train"), ("again.wav", "born later", "test")])
    assert len(run_check(tmp_path)) == 1
    report = check_corpus(
        compose_dataset(overrides(tmp_path, f"dataset.exclude={tmp_path / 'out' / 'exclude.txt'}")), limits=Limits()
    )
    assert len(report.splits[0].entries) == 4 and not any(overlap.matches for overlap in report.overlaps)


def test_block_caption_lists_clips_with_shared_captions(tmp_path: Path):
    write_index(tmp_path, [("a.wav", "a dog", "train"), ("c.wav", "a cat", "train"), ("b.wav", "A dog!", "test")])
    run_check(tmp_path, "--no-audio", "--block", "caption")
    assert (tmp_path / "out" / "exclude.txt").read_text().splitlines()[1:] == [
        "a.wav\tcaption of csv test: b.wav: a dog"
    ]


def test_training_is_compared_with_evaluation_splits_of_other_corpora(tmp_path: Path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
    write_index(own, [("r1nicOVtvkQ_130.wav", "pouring", "train"), ("b.wav", "a dog", "test")])
    write_index(other, [("r1nicOVtvkQ_30.wav", "water", "test"), ("z.wav", "a dog", "train")])
    (row,) = run_check(own, "--no-audio", "--against", " ".join(overrides(other, "dataset.name=held_out")))
    assert row["other"] == "held_out test: r1nicOVtvkQ_30.wav"
    assert row["detail"] == "youtube:r1nicOVtvkQ at 130 s and at 30 s"


@pytest.fixture(scope="module")
def esc50(tmp_path_factory) -> str:
    """The dataset.root of an ESC-50 replica: captions from labels, file names with Freesound ids."""
    folder = tmp_path_factory.mktemp("esc50")
    synthesize(folder, layout="esc50", num_clips=110, sample_rate=RATE, max_duration=3.0)
    return f"dataset.root={folder}"


def test_replica_of_a_published_layout_has_only_missing_clips(esc50: str):
    report = check_corpus(compose_dataset(["dataset=esc50", esc50]), limits=Limits(silence=-90.0))
    assert [len(split.durations) for split in report.splits] == [66, 22, 22]
    assert [(found.kind, found.detail) for found in report.findings] == [("count", "22 listed, 176 published")]
    assert not any(overlap.matches for overlap in report.overlaps)


def test_train_and_test_folds_with_common_recordings_overlap(esc50: str):
    other = ["dataset=esc50", esc50, "dataset.val_folds=[4]", "dataset.test_folds=[1]"]
    report = check_corpus(
        compose_dataset(["dataset=esc50", esc50]), [compose_dataset(other)], limits=Limits(), workers=0
    )
    shared = {match.entry.clip.id for overlap in report.overlaps[3:] for match in overlap.matches}
    assert shared == set(report.find_blocked_clips(["recording"])) and {name[0] for name in shared} == {"1", "4"}


def compose_dataset(lines: list[str]) -> dict:
    return compose_datasets(lines)[0]


def test_missing_root_is_named():
    with pytest.raises(ValueError, match="dataset.root and dataset.metadata are missing in dataset=csv"):
        compose_dataset(["dataset=csv"])


def test_rendered_clips_are_measured_too():
    report = check_corpus(
        compose_dataset(["dataset.num_train=3", "dataset.num_val=2", "dataset.num_test=0"]), limits=Limits()
    )
    assert [len(split.durations) for split in report.splits] == [3, 2, 0] and not report.findings


@pytest.mark.parametrize("option", [("--similarity", "0"), ("--clipping", "2"), ("--workers", "0")])
def test_invalid_option_is_named(tmp_path: Path, option: tuple[str, str]):
    write_index(tmp_path, [("a.wav", "a dog", "train")])
    with pytest.raises(SystemExit, match=f"error: {option[0]} {option[1]}"):
        run_check(tmp_path, *option)


class Labelled(Corpus):
    """Clips whose captions are made from labels."""

    name = "labelled"

    def clips(self, split: str) -> list[Clip]:
        return [Clip(f"{split} {i}", ("the sound of rain",), None, "rain") for i in range(2)]


def test_captions_from_the_same_label_are_not_reported():
    corpus = Labelled()
    owned = {name: [(corpus, clip) for clip in corpus.clips(name)] for name in ("train", "val", "test")}
    splits = [make_split(corpus, name, clips, listed=2, workers=0) for name, clips in owned.items()]
    report = make_report(splits, [], limits=Limits(), with_audio=False)
    assert not report.findings and not any(overlap.matches for overlap in report.overlaps)

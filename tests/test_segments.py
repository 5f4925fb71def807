"""Similarity over time: windows of a stream, events, and `python -m clap segments`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tone, run_command
from torch.testing import assert_close

from clap.model import Clap
from clap.sound_index.events import Event, SegmentScores, find_events, running_median
from clap.sound_index.segments import score_over_time
from clap.sound_index.windows import WindowPolicy, read_windows


@pytest.fixture(scope="module")
def clap(tiny_checkpoint: Path) -> Clap:
    return Clap.from_ckpt(tiny_checkpoint)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven seconds in stereo at 22.05 kHz."""
    path = tmp_path_factory.mktemp("recording") / "long.wav"
    wave = make_tone(300.0, 7.0, sample_rate=22_050)
    soundfile.write(path, np.stack([wave, np.linspace(0, 0.5, len(wave))], axis=1), 22_050)
    return path


def make_scores(values: list[list[float]]) -> SegmentScores:
    starts = np.arange(len(values), dtype=float)
    texts = ("a", "b")[: len(values[0])]
    return SegmentScores(texts, np.stack([starts, starts + 2], axis=1), np.array(values), hop=1.0)


def test_windows_are_parts_of_the_whole_waveform(recording, monkeypatch):
    [(_, whole)] = read_windows(recording, 16_000, WindowPolicy(7.0, 7.0))
    monkeypatch.setattr("clap.waveform.BLOCK", 5000)  # many blocks for each window
    windows = list(read_windows(recording, 16_000, WindowPolicy(2.0, 1.5)))
    assert [start for start, _ in windows] == [0, 24_000, 48_000, 72_000, 80_000]
    for start, waveform in windows:
        np.testing.assert_allclose(waveform, whole[start : start + 32_000], atol=1e-5)


def test_scores_are_cosines_of_the_windows(clap, recording):
    texts = ["a dog barks", "rain"]
    segments = score_over_time(clap, recording, texts, hop=1.0, batch_size=2)
    assert segments.times.tolist() == [[start, start + 1.0] for start in range(7)]
    waveforms = [waveform for _, waveform in read_windows(recording, 16_000, WindowPolicy(1.0, 1.0))]
    expected = clap.get_audio_embeddings(waveforms, 16_000) @ clap.get_text_embeddings(texts).T
    assert_close(torch.from_numpy(segments.scores), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"hop": 1.5}, {"window": 2.0}, {"hop": 0.0}])
def test_windows_beyond_the_model_or_with_gaps_are_refused(clap, recording, options):
    with pytest.raises(ValueError, match=r"(hop|window)=\S+ s is not between"):
        score_over_time(clap, recording, ["rain"], **options)


def test_consecutive_windows_above_the_threshold_are_an_event():
    scores = make_scores([[0.1, 0.9], [0.6, 0.1], [0.7, 0.1], [0.1, 0.1], [0.1, 0.8]])
    assert find_events(scores, threshold=0.5, median=1) == [
        Event(0.0, 1.5, "b", 0.9), Event(1.5, 3.5, "a", 0.7), Event(4.5, 6.0, "b", 0.8)
    ]  # fmt: skip


def test_median_removes_a_single_window():
    scores = make_scores([[0.1], [0.9], [0.1], [0.8], [0.9], [0.7], [0.1]])
    assert find_events(scores, threshold=0.5, median=3) == [Event(2.5, 6.5, "a", 0.9)]
    assert running_median(np.array([3.0, 1.0, 2.0]), 3).tolist() == [3.0, 2.0, 2.0]


def test_softmax_is_over_the_texts():
    segments = make_scores([[0.2, 0.1], [0.0, 0.0]]).softmax(10.0)
    expected = torch.tensor([[2.0, 1.0], [0.0, 0.0]], dtype=torch.float64).softmax(dim=1)
    assert_close(torch.from_numpy(segments.scores), expected)


def test_command_prints_events_and_writes_plot_and_scores(tiny_checkpoint, recording, tmp_path, capsys):
    arguments = (
        recording,
        "--checkpoint",
        tiny_checkpoint,
        "--text",
        "rain",
        "wind",
        "--threshold",
        "-1",
        "--hop",
        "1",
    )
    files = tmp_path / "plot.png", tmp_path / "events.csv"
    run_command("segments", *arguments, "--json", "--output", *files, "--scores", tmp_path / "scores.csv")
    events = json.loads(capsys.readouterr().out)
    assert [(event["start"], event["end"], event["text"]) for event in events] == [(0, 7, "rain"), (0, 7, "wind")]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[1].read_text().startswith("start,end,text,peak\n0.0,7.0,rain,")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 8
    with pytest.raises(SystemExit, match="--threshold nan is not a number"):
        run_command("segments", *arguments, "--threshold", "nan")


def test_command_without_events_names_the_highest_score(tiny_checkpoint, recording, capsys):
    run_command("segments", recording, "--checkpoint", tiny_checkpoint, "--text", "rain", "--threshold", "2")
    assert re.fullmatch(
        r"no events: the highest score is -?0\.\d{3} before smoothing; set --threshold, now 2\n",
        capsys.readouterr().out,
    )

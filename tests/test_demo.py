"""The answers of the demo page and its command, without a browser."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_tone, run_command
from matplotlib.image import imread

from clap.demo import cards
from clap.demo.answers import CONTEXT, LONGEST_SOUND, MAX_LABELS, MAX_TEXT, Answers, split_labels
from clap.demo.excerpt import KEPT, drop_oldest, write_excerpt
from clap.sound_index.build import build_index
from clap.sound_index.sound_index import Match, SoundIndex
from clap.waveform import load_waveform

LABELS = "a dog barks\nrain on a roof"


@pytest.fixture(scope="module")
def answers(tiny_clap: Callable, tones: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Of a tiny model and an index of eight tones, the last of which has another name."""
    clap, folder = tiny_clap(), tmp_path_factory.mktemp("demo")
    build_index(tones[0].parent, folder / "index", clap, checkpoint="tiny")
    (folder / "shown").mkdir()
    return Answers(clap, SoundIndex.open(folder / "index"), folder / "shown")


def read_numbers(page: str) -> list[float]:
    return [float(number) for number in re.findall(r'clap-number">(-?\d\.\d{3})<', page)]


# Text finds sounds


def test_sounds_are_ranked_by_similarity(answers: Answers):
    page = answers.find_sounds(" a dog barks ", 5)
    query = answers.clap.get_text_embeddings(["a dog barks"])[0].numpy()
    best = [Path(match.path).name for match in answers.index.search(query, top=5)]
    assert re.findall(r"<strong>(.*?)</strong>", page) == best
    assert [int(rank) for rank in re.findall(r'clap-rank">(\d+)<', page)] == [1, 2, 3, 4, 5]
    assert page.count("<audio") == page.count("<img") == 5
    assert "5 sounds closest to “a dog barks”" in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "the text is empty; write one, such as"),
        (" \n ", "the text is empty"),
        ("x" * 10_000, f"the text has 10,000 characters, at most {MAX_TEXT:,} are allowed; shorten it"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_bad_text_is_a_message(answers: Answers, text: str | None, expected: str):
    page = answers.find_sounds(text, 10)
    assert "clap-error" in page and expected in page and "<audio" not in page


def test_text_that_is_cut_gets_a_note(answers: Answers):
    assert "at most 77 tokens" in answers.find_sounds("a dog barks and " * 30, 1)
    assert "tokens" not in answers.find_sounds("a dog barks", 1)


def test_search_without_sounds_is_a_message(answers: Answers):
    page = Answers(answers.clap, None, answers.folder).find_sounds("a dog barks", 10)
    assert "start the demo with --index DIR or --folder FOLDER" in page


def test_long_recording_plays_from_the_segment(answers: Answers, tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", make_tone(300.0, 90.0), 16_000)
    found = answers.cut(Match(str(tmp_path / "long.wav"), 0.5, 40.0, 41.0))
    assert (found.excerpt.start, found.excerpt.end) == (40.0 - CONTEXT, 41.0 + CONTEXT)
    page = cards.show_sound(1, found, [0.5])
    assert f".flac#t={CONTEXT:.2f}" in page and "40.0 s – 41.0 s" in page and 'class="clap-segment"' in page


def test_recording_that_has_gone_is_a_message_in_its_card(answers: Answers):
    found = answers.cut(Match(f"{answers.index.record.folder}/gone.wav", 0.5, 0.0, 1.0))
    page = cards.show_sound(1, found, [0.5])
    assert "gone.wav: no such audio file" in page and answers.index.record.folder not in page


def test_names_are_escaped(answers: Answers):
    found = cards.FoundSound("<img src=x onerror=alert(1)>/a&b\udce9.wav", 0.5, 0.0, 1.0, None, "<b>bad</b>")
    page = cards.show_sounds([found], "<script>")
    assert not {"<img", "<b>", "<script>"} & set(re.findall(r"<\w+>?", page))
    assert "a&amp;b\\udce9.wav" in page


# Excerpts


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (96_000, 2)])
def test_excerpt_has_the_samples_of_its_part(tmp_path: Path, rate: int, channels: int):
    tone = make_tone(440.0, 3.0, sample_rate=rate)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone] * channels, axis=1), rate, subtype="FLOAT")
    excerpt = write_excerpt(tmp_path / "tone.wav", tmp_path, start=1.0, end=2.5)
    samples, excerpt_rate = soundfile.read(excerpt.audio, dtype="float32")
    assert excerpt_rate == min(rate, 48_000)
    expected = load_waveform(tmp_path / "tone.wav", excerpt_rate)[excerpt_rate : round(2.5 * excerpt_rate)]
    assert len(samples) == len(expected)
    np.testing.assert_allclose(
        samples[500:-500], expected[500:-500], atol=1e-3
    )  # its ends are resampled without context
    assert excerpt.peak == pytest.approx(np.abs(tone[rate : round(2.5 * rate)]).max())


def test_picture_shows_when_a_sound_is(tmp_path: Path):
    tone = make_tone(2000.0, 4.0)
    tone[:32_000] *= 0.001
    soundfile.write(tmp_path / "tone.wav", tone, 16_000, subtype="FLOAT")
    pixels = imread(write_excerpt(tmp_path / "tone.wav", tmp_path).picture)[:, :, :3].mean(axis=2)  # (mel, time)
    loudest = pixels.max(axis=0)
    assert loudest[: len(loudest) // 2 - 3].max() < 0.5 < loudest[len(loudest) // 2 + 3 :].min()


def test_blocks_give_the_excerpt_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soundfile.write(tmp_path / "tone.wav", make_tone(440.0, 4.0), 16_000)
    whole = write_excerpt(tmp_path / "tone.wav", tmp_path)
    monkeypatch.setattr("clap.waveform.BLOCK", 16_000)
    parts = write_excerpt(tmp_path / "tone.wav", tmp_path)
    assert soundfile.read(parts.audio)[0].tolist() == soundfile.read(whole.audio)[0].tolist()
    assert parts.peak == whole.peak
    differences = np.abs(imread(parts.picture) - imread(whole.picture))
    assert differences.mean() < 0.01


def test_old_excerpts_are_removed(tmp_path: Path):
    for number in range(2 * KEPT + 3):
        (tmp_path / str(number)).touch()
    drop_oldest(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * KEPT


# A sound gets labels


def test_short_sound_gets_the_similarity_of_each_label(answers: Answers, tones: list[Path]):
    page = answers.score_sound(str(tones[0]), None, LABELS, "{}")
    audio = answers.clap.get_audio_embeddings([tones[0]])
    scores = (answers.clap.get_text_embeddings(LABELS.split("\n")) @ audio[0]).tolist()
    assert read_numbers(page) == pytest.approx(sorted(scores, reverse=True), abs=6e-4)
    assert "polygon" not in page and "data-seek" not in page


def test_long_sound_gets_scores_over_time(answers: Answers, tones: list[Path]):
    page = answers.score_sound(None, str(tones[7]), LABELS, "the sound of {}")
    assert page.count("<polygon") == page.count("data-seek") == 2
    assert "tone 7.wav" in page and str(tones[7].parent) not in page


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind in ("nan", "silent", "tiny"):
        samples = {"nan": np.full(16_000, np.nan), "silent": np.zeros(16_000), "tiny": np.ones(10)}[kind]
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    elif kind == "endless":
        with soundfile.SoundFile(path, "w", 100, 1, subtype="PCM_U8") as file:
            file.write(np.zeros(round(100 * LONGEST_SOUND) + 200))
    else:
        path.write_bytes({"zero": b"", "text": b"not a recording"}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("zero", "zero.wav: empty, 0 bytes"),
        ("text", "text.wav: cannot be decoded"),
        ("nan", "nan.wav: holds NaN or infinite samples"),
        ("silent", "silent.wav: silent, its largest sample is 0 of 1"),
        ("tiny", "tiny.wav: 10 samples at 16000 Hz, shorter than one frame"),
        ("endless", "endless.wav: 2:00:02 long, the page scores up to 2:00:00"),
        ("gone", "gone.wav: no such audio file"),
    ],
)
def test_bad_upload_is_a_message(answers: Answers, tmp_path: Path, kind: str, expected: str):
    path = tmp_path / "gone.wav" if kind == "gone" else write_bad(tmp_path, kind)
    page = answers.score_sound(str(path), None, LABELS, "{}")
    assert page.startswith('<div class="clap-message clap-error"') and expected in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize("name", ["tone.txt", "tone.mp3", "tone"])
def test_suffix_does_not_matter(answers: Answers, tones: list[Path], tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(tones[0].read_bytes())
    assert len(read_numbers(answers.score_sound(str(tmp_path / name), None, LABELS, "{}"))) == 2


@pytest.mark.parametrize(
    ("labels", "prompt", "expected"),
    [
        ("", "{}", "no labels; write one or more"),
        (" ,, ", "{}", "no labels"),
        (None, "{}", "no labels"),
        (",".join(map(str, range(MAX_LABELS + 1))), "{}", f"101 labels, at most {MAX_LABELS} are allowed"),
        ("y" * 2000, "{}", "the label has 2,000 characters"),
        ("dog", "", "the prompt is empty"),
        ("dog", "a sound", "the prompt is &#x27;a sound&#x27;; write {} where the label belongs"),
    ],
)
def test_bad_labels_are_a_message(answers: Answers, tones: list[Path], labels: str | None, prompt: str, expected: str):
    assert expected in answers.score_sound(str(tones[0]), None, labels, prompt)


def test_no_recording_is_a_message(answers: Answers):
    assert "choose a recording, or record one" in answers.score_sound(None, None, LABELS, "{}")


def test_labels_are_lines_or_separated_by_commas():
    assert split_labels("dog, rain ,dog")[0] == ["dog", "rain"]
    assert split_labels("speech, male\n\nrain")[0] == ["speech, male", "rain"]
    assert split_labels("dog, rain ,dog")[1] == ["“dog” is given more than once and scored once"]


# The command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--checkpoint", "nowhere/run"], "nowhere/run"),
        (["--index", "nowhere"], "nowhere: no such index"),
        ([], "no checkpoint; give --checkpoint, or --index"),
        (["--checkpoint", "x", "--folder", "nowhere"], "--folder nowhere is not a folder"),
        (["--checkpoint", "x", "--port", "70000"], "--port 70000 is not a port"),
        (["--checkpoint", "x", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port"),
    ],
)
def test_bad_arguments_are_reported(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clap.commands.inputs.load_embedder", lambda args: pytest.fail("a model is loaded"))
    with pytest.raises(SystemExit, match=re.escape(expected)):
        run_command("demo", "--port", "0", *arguments)


def test_port_in_use_is_reported():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            run_command("demo", "--checkpoint", "x", "--port", str(port))


def test_missing_gradio_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="run: pip install gradio"):
        run_command("demo", "--checkpoint", "x")

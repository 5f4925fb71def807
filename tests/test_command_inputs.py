"""Inputs of the commands: recordings, captions, and wrong arguments, rejected before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONF

from clap.commands.inputs import find_files, read_texts
from clap.commands.output import choose_format, to_json


def test_folders_and_patterns_yield_recordings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.wav", "a.FLAC", "notes.txt", "._b.wav", "deep/er/c.opus", "[1].mp3"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.mkdir("empty")
    everything = ["./[1].mp3", "./a.FLAC", "./b.wav", "./deep/er/c.opus"]
    assert find_files(["."]) == everything
    assert find_files(["*.wav", "**/*.opus"]) == ["b.wav", "deep/er/c.opus"]
    assert find_files(["[1].mp3", "b.wav", "b.wav"]) == ["[1].mp3", "b.wav"]
    with pytest.raises(FileNotFoundError, match=r"no such recording: x.wav, \*.ogg;"):
        find_files(["b.wav", "x.wav", "*.ogg"])
    with pytest.raises(FileNotFoundError, match="no recordings in empty; supported suffixes: .8svx, "):
        find_files(["empty"])


def test_links_are_followed_without_loops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rec/a.wav", "other/b.wav", "other/deep/c.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for link, target in {
        "rec/link": "../other", "rec/self": ".", "other/deep/up": "../../rec", "rec/d.wav": "gone.wav",
        "rec/gone": "no", "rec/notes.txt": "no.txt", "rec/me.wav": "me.wav",
    }.items():  # fmt: skip
        os.symlink(target, link)
    files = ["rec/a.wav", "rec/d.wav", "rec/gone", "rec/me.wav", "rec/link/b.wav", "rec/link/deep/c.wav"]
    assert find_files(["rec"]) == files and find_files(["rec/../rec"])
    assert sorted(find_files(["rec/**/*.wav"])) == sorted(file for file in files if file != "rec/gone")
    assert set(find_files(["rec/*"])) == {*files, "rec/notes.txt"}


def test_kinds_that_must_be_converted_are_found(tmp_path):
    for name in ("a.m4a", "b.WEBM", "c.mp4", "d.w64", "e.txt"):
        (tmp_path / name).touch()
    assert [Path(file).name for file in find_files([str(tmp_path)])] == ["a.m4a", "b.WEBM", "c.mp4", "d.w64"]


def test_captions_are_read_line_by_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\ufeffa dog barks\r\nregen fällt\n\n", encoding="utf-8")
    assert read_texts(["wind"], path, "caption") == ["wind", "a dog barks", "regen fällt"]


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c", "\x1e"])
def test_only_line_breaks_end_a_caption(tmp_path, separator):
    path = tmp_path / "captions.txt"
    path.write_text(f"a{separator}dog\nrain", encoding="utf-8")
    assert read_texts([], path, "caption") == [f"a{separator}dog", "rain"]


def test_suffix_of_an_output_may_be_in_capitals(tmp_path):
    assert choose_format(tmp_path / "A.JSONL", None) == "jsonl" and choose_format(tmp_path / "A.Npz", None) == "npz"


def test_json_lines_are_lines_for_every_reader():
    entries = [{"file": "a\u2028b\x85.wav", "text": "é\x0b"}, {"file": "c.wav"}]
    assert [json.loads(line) for line in to_json(entries, "jsonl").decode().splitlines()] == entries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a dog\n\nrain", "line 2 is blank; write one caption per line"),
        (b"\n", "is empty; write one caption per line"),
        (b"\xff\xfe", "is not UTF-8 text; write one caption per line"),
    ],
    ids=["blank line", "empty", "not text"],
)
def test_invalid_caption_file_is_named(tmp_path, content, message):
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"captions.txt.* {message}"):
        read_texts([], path, "caption")


WRONG_ARGUMENTS = {
    "absent file": (["classify", "absent.wav", "--labels", "dog"], "no such recording: absent.wav"),
    "no label": (["classify", "TONE"], "no labels given; give --labels or --labels-file"),
    "blank label": (["classify", "TONE", "--labels", "dog", " "], "a label is blank: ' '"),
    "label twice": (["classify", "TONE", "--labels", "dog", "dog"], "label 'dog' is given twice"),
    "template": (["classify", "TONE", "--labels", "dog", "--template", "a sound"], "each needs {}"),
    "no caption": (["similarity", "TONE"], "no captions given; give --text or --captions"),
    "blank caption": (["similarity", "TONE", "--text", ""], "a caption is blank: ''"),
    "nothing": (["embed"], "nothing to embed; give files"),
    "batch size": (["embed", "TONE", "--batch-size", "0"], "--batch-size 0 is too small; give 1 or more"),
    "top": (["similarity", "TONE", "--text", "rain", "--top", "0"], "--top 0 is too small; give 1 or more"),
    "suffix": (["embed", "TONE", "--output", "e.csv"], "the suffix is not one of .txt, .json, .jsonl, .npz"),
    "embeddings as table": (["embed", "TONE", "--output", "e.txt"], "written as npz, json, jsonl; change the suffix"),
    "absent folder": (["embed", "TONE", "--output", "absent/e.npz"], "absent is not a writable folder"),
    "folder": (["embed", "TONE", "--output", "."], "is a folder; give the path of a file"),
    "npz on stdout": (
        ["classify", "TONE", "--labels", "dog", "--format", "npz"],
        "npz is not written to stdout; add --output FILE",
    ),
    "index of no folder": (["index", "absent", "--output", "i"], "absent is not a folder; give a folder of recordings"),
    "index of no recordings": (["index", ".", "--output", "i"], "no recordings in .; supported suffixes"),
    "hop": (["index", ".", "--output", "i", "--hop", "0"], "--hop 0 is not a positive number of seconds"),
    "empty query": (["search", " ", "--index", "i"], "a query is blank: ' '"),
    "no query": (["search", "--index", "i"], "nothing to search for; give a text"),
    "absent index": (["search", "rain", "--index", "i"], "i: no such index; write it with"),
    "even median": (["segments", "TONE", "--text", "a", "--median", "2"], "median=2 is not an odd number of windows"),
    "one text": (["segments", "TONE", "--text", "a", "--softmax"], "--softmax compares texts, and one is given"),
    "checkpoint": (["embed", "TONE", "--checkpoint", "some/absent/run"], "some/absent/run: no such file or folder"),
    "hub name": (["embed", "TONE", "--checkpoint", "some/absent"], "not found on the Hugging Face hub or in its cache"),
    "no checkpoint": (["embed", "TONE", "--checkpoint", "."], ". is not a checkpoint: it contains none of config.yaml"),
}
IN_ONE_PROCESS = """
import json, sys
from clap.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code, flush=True)
    else:
        print("accepted", flush=True)
    assert "torch" not in sys.modules, arguments
"""


def test_wrong_arguments_are_reported_before_torch_is_imported(tones, tiny_checkpoint, tmp_path):
    commands = []
    for arguments, _ in WRONG_ARGUMENTS.values():
        arguments = [str(tones[0]) if argument == "TONE" else argument for argument in arguments]
        if "--checkpoint" not in arguments:
            arguments += ["--checkpoint", str(tiny_checkpoint)]
        commands.append(arguments)
    commands.append(["classify", "--help"])
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CONF.parent), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert answers[-1] == "0"
    for (_, expected), answer in zip(WRONG_ARGUMENTS.values(), answers, strict=False):
        assert answer.startswith("error: ") and expected in answer

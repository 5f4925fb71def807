"""python -m clap embed, classify, similarity: what they write, whom they leave out, and what they refuse at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, CONF
from torch.testing import assert_close

from clap.__main__ import main
from clap.atomic import write_atomic
from clap.commands.inputs import find_files, read_texts
from clap.model import Clap


@pytest.fixture(scope="module")
def checkpoint(tiny_clap, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_clap().save(folder)
    return folder


@pytest.fixture(scope="module")
def clap(checkpoint) -> Clap:
    return Clap.from_ckpt(checkpoint)


@pytest.fixture
def broken(tmp_path) -> Path:
    path = tmp_path / "broken.wav"
    path.write_bytes(b"no audio" * 100)
    return path


def call(verb: str, *arguments: str | Path) -> None:
    main([verb, *map(str, arguments)])


# Files and captions


def test_folders_and_patterns_lead_to_recordings(tmp_path, monkeypatch):
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
    with pytest.raises(FileNotFoundError, match="no recordings below empty"):
        find_files(["empty"])


def test_captions_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\ufeffa dog barks\r\nregen fällt\n\n", encoding="utf-8")
    assert read_texts(["wind"], path, "caption") == ["wind", "a dog barks", "regen fällt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a dog\n\nrain", "line 2: blank"), (b"\n", "empty"), (b"\xff\xfe", "not a text in UTF-8")],
    ids=["blank line", "empty", "not text"],
)
def test_unusable_captions_are_named(tmp_path, content, message):
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"captions.txt.*{message}"):
        read_texts([], path, "caption")


# Embeddings


def test_embed_writes_what_python_gives(checkpoint, clap, tones, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    output = tmp_path / "e.npz"
    call("embed", *tones, "--text", "wind", "--captions", captions, "--checkpoint", checkpoint, "--output", output)
    with np.load(output) as found:
        assert found["files"].tolist() == [str(path) for path in tones]
        assert found["captions"].tolist() == ["wind", *CAPTIONS]
        audio, text = torch.from_numpy(found["audio"]), torch.from_numpy(found["text"])
    assert_close(audio, clap.get_audio_embeddings(tones), atol=1e-6, rtol=0)
    assert_close(text, clap.get_text_embeddings(["wind", *CAPTIONS]), atol=1e-6, rtol=0)
    assert capsys.readouterr().out == f"{output}: audio (8, 16), text (9, 16)\n"


def test_embed_averages_windows_on_request(checkpoint, tiny_clap, tones, tmp_path):
    output = tmp_path / "e.npz"
    call("embed", *tones, "--checkpoint", checkpoint, "--windows", "mean", "--output", output)
    expected = tiny_clap("fusion=mean").get_audio_embeddings(tones)
    assert_close(torch.from_numpy(np.load(output)["audio"]), expected, atol=1e-6, rtol=0)


def test_embed_of_audio_alone_needs_no_tokenizer(checkpoint, tones, tmp_path):
    output = tmp_path / "e.npz"
    arguments = (tones[0], "--checkpoint", checkpoint, "--tokenizer", tmp_path / "absent", "--output", output)
    call("embed", *arguments)
    assert set(np.load(output)) == {"audio", "files"}
    with pytest.raises(SystemExit, match="error: no tokenizer .*absent"):
        call("embed", *arguments, "--text", "a dog")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_embed_writes_json(checkpoint, clap, tones, tmp_path, suffix):
    output = tmp_path / f"e.{suffix}"
    call("embed", tones[0], "--text", "wind", "--checkpoint", checkpoint, "--output", output)
    text = output.read_text()
    entries = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    assert [entry.get("file") or entry["caption"] for entry in entries] == [str(tones[0]), "wind"]
    assert_close(torch.tensor([entries[1]["embedding"]]), clap.get_text_embeddings(["wind"]), atol=1e-6, rtol=0)


def test_unreadable_file_is_named_and_the_others_are_done(checkpoint, tones, broken, tmp_path, capsys):
    output = tmp_path / "e.npz"
    with pytest.raises(SystemExit, match="error: 1 of 3 files skipped"):
        call("embed", tones[0], broken, tones[1], "--checkpoint", checkpoint, "--output", output)
    assert np.load(output)["files"].tolist() == [str(tones[0]), str(tones[1])]
    assert f"skipped: {broken}: cannot be decoded" in capsys.readouterr().err


def test_nothing_readable_writes_nothing(checkpoint, broken, tmp_path):
    with pytest.raises(SystemExit, match="error: none of the 1 files could be read"):
        call("embed", broken, "--checkpoint", checkpoint, "--output", tmp_path / "e.npz")
    assert not (tmp_path / "e.npz").exists()


def test_output_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "e.npz"
    write_atomic(path, b"before")

    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fill_disk)
    with pytest.raises(OSError, match="e.npz: not written .No space left on device.; an existing file is unchanged"):
        write_atomic(path, b"after")
    assert [item.name for item in tmp_path.iterdir()] == ["e.npz"] and path.read_bytes() == b"before"


# Classes and similarities


def test_classify_prints_a_table_best_first(checkpoint, clap, tones, capsys):
    labels = ["dog", "rain", "bird song"]
    call("classify", *tones[:2], "--labels", *labels, "--checkpoint", checkpoint, "--top", "2")
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "text", "probability"] and len(lines) == 4
    probability = clap.classify(tones[:2], labels)
    for row, first, second in ((0, *lines[:2]), (1, *lines[2:])):
        best = probability[row].argsort(descending=True)
        assert first.startswith(str(tones[row])) and second.startswith(" ")
        assert first.endswith(f"{probability[row, best[0]]:.3f}") and f"  {labels[best[0]]}  " in first
        assert second.endswith(f"{probability[row, best[1]]:.3f}")


def test_classify_averages_templates(checkpoint, clap, tones, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("rain\nwind\n")
    templates, output = ["the sound of {}", "{}"], tmp_path / "c.npz"
    arguments = ("--labels", "dog", "--labels-file", names, "--template", *templates)
    call("classify", *tones, *arguments, "--checkpoint", checkpoint, "--output", output)
    with np.load(output) as found:
        assert found["labels"].tolist() == ["dog", "rain", "wind"] and found["templates"].tolist() == templates
        expected = clap.classify(tones, ["dog", "rain", "wind"], templates)
        assert_close(torch.from_numpy(found["probability"]), expected, atol=1e-5, rtol=0)


def test_similarity_is_the_cosine(checkpoint, clap, tones, capsysbinary):
    call("similarity", *tones, "--text", *CAPTIONS, "--checkpoint", checkpoint, "--format", "jsonl")
    entries = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    cosine = clap.get_audio_embeddings(tones) @ clap.get_text_embeddings(CAPTIONS).T
    found = torch.tensor([[entry["similarity"][caption] for caption in CAPTIONS] for entry in entries])
    assert_close(found, cosine, atol=1e-6, rtol=0)
    assert all(
        sorted(entry["similarity"].values(), reverse=True) == [*entry["similarity"].values()] for entry in entries
    )


def test_similarity_npz_gives_the_logits_of_python(checkpoint, clap, tones, tmp_path):
    output = tmp_path / "s.npz"
    call("similarity", *tones, "--text", "rain", "wind", "--checkpoint", checkpoint, "--output", output)
    with np.load(output) as found:
        logits = torch.from_numpy(found["similarity"]) * float(found["logit_scale"])
    expected = clap.compute_similarity(clap.get_audio_embeddings(tones), clap.get_text_embeddings(["rain", "wind"]))
    assert_close(logits, expected, atol=1e-5, rtol=0)


def test_unreadable_file_is_no_row(checkpoint, tones, broken, capsys):
    with pytest.raises(SystemExit, match="1 of 2 files skipped"):
        call("similarity", broken, tones[0], "--text", "rain", "--checkpoint", checkpoint, "--format", "json")
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["file"] == str(tones[0])


# Mistakes

MISTAKES = {
    "absent file": (["classify", "absent.wav", "--labels", "dog"], "no such recording: absent.wav"),
    "no label": (["classify", "TONE"], "give --labels or --labels-file"),
    "blank label": (["classify", "TONE", "--labels", "dog", " "], "a label is blank: ' '"),
    "label twice": (["classify", "TONE", "--labels", "dog", "dog"], "label 'dog' is given twice"),
    "template": (["classify", "TONE", "--labels", "dog", "--template", "a sound"], "each needs {}"),
    "no caption": (["similarity", "TONE"], "give --text or --captions"),
    "blank caption": (["similarity", "TONE", "--text", ""], "a caption is blank: ''"),
    "nothing": (["embed"], "nothing to embed; give files"),
    "batch size": (["embed", "TONE", "--batch-size", "0"], "--batch-size 0 is not 1 or more"),
    "top": (["similarity", "TONE", "--text", "rain", "--top", "0"], "--top 0 is not 1 or more"),
    "suffix": (["embed", "TONE", "--output", "e.csv"], "tell the format"),
    "embeddings as table": (["embed", "TONE", "--output", "e.txt"], "written as npz, json, jsonl"),
    "absent folder": (["embed", "TONE", "--output", "absent/e.npz"], "absent is not a folder that can be written to"),
    "folder": (["embed", "TONE", "--output", "."], "is a folder; give a file in it"),
    "npz on the screen": (["classify", "TONE", "--labels", "dog", "--format", "npz"], "--format npz needs --output"),
    "checkpoint": (["embed", "TONE", "--checkpoint", "some/absent/run"], "some/absent/run: no such file or folder"),
    "hub name": (["embed", "TONE", "--checkpoint", "some/absent"], "not found on the Hugging Face hub or in its cache"),
    "no checkpoint": (["embed", "TONE", "--checkpoint", "."], "no checkpoint in this folder"),
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
        print("no mistake", flush=True)
    assert "torch" not in sys.modules, arguments
"""


def test_mistakes_are_told_before_torch_is_imported(tones, checkpoint, tmp_path):
    commands = []
    for arguments, _ in MISTAKES.values():
        arguments = [str(tones[0]) if argument == "TONE" else argument for argument in arguments]
        commands.append(arguments if "--checkpoint" in arguments else [*arguments, "--checkpoint", str(checkpoint)])
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
    for (_, expected), answer in zip(MISTAKES.values(), answers, strict=False):
        assert answer.startswith("error: ") and expected in answer

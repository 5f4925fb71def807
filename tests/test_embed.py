"""`python -m clap embed`: the arrays it writes, and the files it skips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, run_command
from torch.testing import assert_close

from clap.model import Clap


@pytest.fixture(scope="module")
def clap(tiny_checkpoint: Path) -> Clap:
    return Clap.from_ckpt(tiny_checkpoint)


def test_embed_equals_the_python_api(tiny_checkpoint, clap, tones, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    output = tmp_path / "e.npz"
    run_command(
        "embed", *tones, "--text", "wind", "--captions", captions, "--checkpoint", tiny_checkpoint, "--output", output
    )
    with np.load(output) as found:
        assert found["files"].tolist() == [str(path) for path in tones]
        assert found["captions"].tolist() == ["wind", *CAPTIONS]
        audio, text = torch.from_numpy(found["audio"]), torch.from_numpy(found["text"])
    assert_close(audio, clap.get_audio_embeddings(tones), atol=1e-6, rtol=0)
    assert_close(text, clap.get_text_embeddings(["wind", *CAPTIONS]), atol=1e-6, rtol=0)
    assert capsys.readouterr().out == f"{output}: audio (8, 16), text (9, 16)\n"


def test_windows_mean_averages_windows(tiny_checkpoint, tiny_clap, tones, tmp_path):
    output = tmp_path / "e.npz"
    run_command("embed", *tones, "--checkpoint", tiny_checkpoint, "--windows", "mean", "--output", output)
    expected = tiny_clap("fusion=mean").get_audio_embeddings(tones)
    assert_close(torch.from_numpy(np.load(output)["audio"]), expected, atol=1e-6, rtol=0)


def test_audio_without_captions_needs_no_tokenizer(tiny_checkpoint, tones, tmp_path):
    output = tmp_path / "e.npz"
    arguments = (tones[0], "--checkpoint", tiny_checkpoint, "--tokenizer", tmp_path / "absent", "--output", output)
    run_command("embed", *arguments)
    assert set(np.load(output)) == {"audio", "files"}
    with pytest.raises(SystemExit, match="error: no tokenizer .*absent"):
        run_command("embed", *arguments, "--text", "a dog")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_embeddings_are_written_as_json(tiny_checkpoint, clap, tones, tmp_path, suffix):
    output = tmp_path / f"e.{suffix}"
    run_command("embed", tones[0], "--text", "wind", "--checkpoint", tiny_checkpoint, "--output", output)
    text = output.read_text()
    entries = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    assert [entry.get("file") or entry["caption"] for entry in entries] == [str(tones[0]), "wind"]
    assert_close(torch.tensor([entries[1]["embedding"]]), clap.get_text_embeddings(["wind"]), atol=1e-6, rtol=0)


def test_unreadable_file_is_reported_and_skipped(tiny_checkpoint, tones, unreadable, tmp_path, capsys):
    output = tmp_path / "e.npz"
    with pytest.raises(SystemExit, match="error: 1 of 3 files skipped"):
        run_command("embed", tones[0], unreadable, tones[1], "--checkpoint", tiny_checkpoint, "--output", output)
    assert np.load(output)["files"].tolist() == [str(tones[0]), str(tones[1])]
    assert f"skipped: {unreadable}: cannot be decoded" in capsys.readouterr().err


def test_nothing_is_written_without_a_readable_file(tiny_checkpoint, unreadable, tmp_path):
    with pytest.raises(SystemExit, match="error: none of the 1 files is readable, nothing is written"):
        run_command("embed", unreadable, "--checkpoint", tiny_checkpoint, "--output", tmp_path / "e.npz")
    assert not (tmp_path / "e.npz").exists()

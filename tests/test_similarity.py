"""`python -m clap similarity`: cosine similarities, as JSON and in a file."""

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


def test_similarity_is_the_cosine(tiny_checkpoint, clap, tones, capsysbinary):
    run_command("similarity", *tones, "--text", *CAPTIONS, "--checkpoint", tiny_checkpoint, "--format", "jsonl")
    entries = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    cosine = clap.get_audio_embeddings(tones) @ clap.get_text_embeddings(CAPTIONS).T
    found = torch.tensor([[entry["similarity"][caption] for caption in CAPTIONS] for entry in entries])
    assert_close(found, cosine, atol=1e-6, rtol=0)
    assert all(
        sorted(entry["similarity"].values(), reverse=True) == [*entry["similarity"].values()] for entry in entries
    )


def test_npz_reproduces_the_logits_of_the_python_api(tiny_checkpoint, clap, tones, tmp_path):
    output = tmp_path / "s.npz"
    run_command("similarity", *tones, "--text", "rain", "wind", "--checkpoint", tiny_checkpoint, "--output", output)
    with np.load(output) as found:
        logits = torch.from_numpy(found["similarity"]) * float(found["logit_scale"])
    expected = clap.compute_similarity(clap.get_audio_embeddings(tones), clap.get_text_embeddings(["rain", "wind"]))
    assert_close(logits, expected, atol=1e-5, rtol=0)


def test_unreadable_file_has_no_entry(tiny_checkpoint, tones, unreadable, capsys):
    with pytest.raises(SystemExit, match="1 of 2 files skipped"):
        run_command(
            "similarity", unreadable, tones[0], "--text", "rain", "--checkpoint", tiny_checkpoint, "--format", "json"
        )
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["file"] == str(tones[0])

"""`python -m clap classify`: probabilities of labels, as a table and in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command
from torch.testing import assert_close

from clap.model import Clap


@pytest.fixture(scope="module")
def clap(tiny_checkpoint: Path) -> Clap:
    return Clap.from_ckpt(tiny_checkpoint)


def test_table_lists_the_best_labels_first(tiny_checkpoint, clap, tones, capsys):
    labels = ["dog", "rain", "bird song"]
    run_command("classify", *tones[:2], "--labels", *labels, "--checkpoint", tiny_checkpoint, "--top", "2")
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "text", "probability"] and len(lines) == 4
    probability = clap.classify(tones[:2], labels)
    for row, first, second in ((0, *lines[:2]), (1, *lines[2:])):
        best = probability[row].argsort(descending=True)
        assert first.startswith(str(tones[row])) and second.startswith(" ")
        assert first.endswith(f"{probability[row, best[0]]:.3f}") and f"  {labels[best[0]]}  " in first
        assert second.endswith(f"{probability[row, best[1]]:.3f}")


def test_templates_are_averaged(tiny_checkpoint, clap, tones, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("rain\nwind\n")
    templates, output = ["the sound of {}", "{}"], tmp_path / "c.npz"
    arguments = ("--labels", "dog", "--labels-file", names, "--template", *templates)
    run_command("classify", *tones, *arguments, "--checkpoint", tiny_checkpoint, "--output", output)
    with np.load(output) as found:
        assert found["labels"].tolist() == ["dog", "rain", "wind"] and found["templates"].tolist() == templates
        expected = clap.classify(tones, ["dog", "rain", "wind"], templates)
        assert_close(torch.from_numpy(found["probability"]), expected, atol=1e-5, rtol=0)

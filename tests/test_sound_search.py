"""`python -m clap index` and `python -m clap search`: from a folder to matches."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_command

from clap.model import Clap
from clap.sound_index import build


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkpoint, to move away."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("model") / "run"))


@pytest.fixture(scope="module")
def index(checkpoint: Path, tones: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the tones."""
    folder = tmp_path_factory.mktemp("search") / "index"
    run_command("index", tones[0].parent, "--checkpoint", checkpoint, "--output", folder)
    return folder


def search(capsys: pytest.CaptureFixture, *arguments: str | Path) -> list[dict]:
    capsys.readouterr()
    run_command("search", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_second_run_finds_nothing_to_do_and_needs_no_checkpoint(index, tones, capsys):
    run_command("index", tones[0].parent, "--output", index)
    assert capsys.readouterr().out.endswith("(0 added, 0 changed, 0 deleted, 8 unchanged)\n")


def test_texts_and_sounds_are_searched(index, checkpoint, tones, capsys):
    text, sound = search(capsys, "a dog barks", "--sound", tones[1], "--index", index, "--top", "3")
    assert [match["rank"] for match in text["matches"]] == [1, 2, 3] and text["text"] == "a dog barks"
    best = sound["matches"][0]
    assert (
        best["path"] == str(tones[1]) and best["score"] == pytest.approx(1) and (best["start"], best["end"]) == (0, 1)
    )
    clap = Clap.from_ckpt(checkpoint)
    short = clap.get_text_embeddings(["a dog barks"]) @ clap.get_audio_embeddings(tones[:2]).T
    every = {match["path"]: match["score"] for match in search(capsys, "a dog barks", "--index", index)[0]["matches"]}
    assert [every[str(path)] for path in tones[:2]] == pytest.approx(short[0].tolist(), abs=1e-5)


def test_table_has_times_within_long_files(index, tones, capsys):
    run_command("search", "--sound", tones[7], "--index", index, "--top", "8")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["query", "rank", "score", "time", "path"] and len(lines) == 9
    times = {line[-1]: line[-5:-2] for line in lines[1:]}  # names have a space
    assert times["0.wav"] == ["00:00.0", "-", "00:00.5"]
    start, end = (float(times["7.wav"][place].removeprefix("00:")) for place in (0, 2))
    assert end - start == 1.0 and end <= 4.0  # the window of the model


def test_moved_checkpoint_is_given_and_another_is_refused(index, checkpoint, tiny_clap, tmp_path, capsys):
    other = tiny_clap()
    other.audio_projection.linear1.bias.data += 1
    other.save_pretrained(tmp_path / "other", huggingface=False)
    with pytest.raises(
        SystemExit, match=r"error: .*other \(weights .*\) is not the model of the index, .*run \(weights"
    ):
        run_command("search", "rain", "--index", index, "--checkpoint", tmp_path / "other")
    moved = checkpoint.with_name("moved")
    checkpoint.rename(moved)
    try:
        with pytest.raises(SystemExit, match=r"error: .*run: no such .* if it has moved, add --checkpoint"):
            run_command("search", "rain", "--index", index)
        assert search(capsys, "rain", "--index", index, "--checkpoint", moved)
    finally:
        moved.rename(checkpoint)


def test_ctrl_c_prints_the_command_that_resumes(checkpoint, tones, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build.Journal, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = (tones[0].parent, "--checkpoint", checkpoint, "--output", tmp_path / "index")
    with pytest.raises(SystemExit) as end:
        run_command("index", *arguments)
    command = f"python -m clap index {' '.join(map(str, arguments))} --batch-size 16"
    assert end.value.code == 130 and command in capsys.readouterr().err

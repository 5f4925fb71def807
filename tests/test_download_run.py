"""Downloads from end to end: resumed, repeated, interrupted, and used by datasets and training."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from download_server import FileServer
from mirrors import RATE, compose_addresses, download, read_files, serve_audiocaps, serve_clotho
from test_corpora import train

from clap.dataset.clips import ClapDataset
from clap.dataset.registry import find_corpus


@pytest.fixture
def clotho(file_server: FileServer) -> dict[str, object]:
    return serve_clotho(file_server)


@pytest.fixture
def audiocaps(file_server: FileServer) -> dict[str, object]:
    return serve_audiocaps(file_server)


def test_second_download_sends_no_request(clotho: dict, file_server: FileServer, tmp_path: Path):
    download("clotho", tmp_path, clotho)
    before = len(file_server.requests)
    assert not download("clotho", tmp_path, clotho).failures
    assert len(file_server.requests) == before


def test_corpus_is_found_in_a_renamed_folder(clotho: dict, file_server: FileServer, tmp_path: Path):
    download("clotho", tmp_path, clotho)
    (tmp_path / "clotho").rename(tmp_path / "Clotho-v2.1")
    (tmp_path / "Clotho-v2.1" / ".download.lock").unlink()
    before = len(file_server.requests)
    result = download("clotho", tmp_path / "Clotho-v2.1", clotho)
    assert result.root == tmp_path / "Clotho-v2.1" and len(file_server.requests) == before
    assert not (result.root / ".download.lock").exists()  # a complete folder may be read-only


def test_dataset_downloads_its_split(clotho: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    overrides = [f"{key}={value}" for key, value in clotho.items()]
    monkeypatch.setattr("clap.dataset.registry.read_addresses", lambda name: compose_addresses(name, overrides))
    dataset = ClapDataset(datasets=["Clotho"], kind="test", root=tmp_path, download=True, sample_rate=RATE)
    assert len(dataset) == 2 and len(dataset[0].waveform) == 6 * RATE
    assert not (tmp_path / "clotho" / "development").exists()


def test_downloaded_corpora_train_together(clotho: dict, audiocaps: dict, tiny_config: Callable, tmp_path: Path):
    for name, overrides in {"clotho": clotho, "audiocaps": audiocaps}.items():
        download(name, tmp_path / "data", overrides)
    metrics = train(tiny_config("dataset=clotho_audiocaps", f"dataset.root={tmp_path / 'data'}"), tmp_path / "run")
    assert {name.split("/")[1] for name in metrics if name.startswith("test/")} == {"clotho", "audiocaps"}


def test_dataset_downloads_corpora_by_name_only(tmp_path: Path):
    with pytest.raises(ValueError, match="download=True needs names of corpora and a folder"):
        ClapDataset(datasets=["Clotho"], download=True, sample_rate=RATE)


def test_error_of_a_missing_corpus_names_the_download_command(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="python -m clap download clotho --root data"):
        find_corpus("clotho", tmp_path / "absent")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clotho", "audiocaps"])
def test_download_killed_twenty_times_gives_the_same_files(
    name: str, clotho: dict, audiocaps: dict, file_server: FileServer, tmp_path: Path
):
    overrides = {"clotho": clotho, "audiocaps": audiocaps}[name]
    download(name, tmp_path / "once", overrides)
    file_server.pause, begun = 0.05, len(file_server.requests)
    lines = [f"{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "clap", "download", name, "--root", str(tmp_path / "killed"), *lines]
    rng = random.Random(0)
    for _ in range(20):
        before = len(file_server.requests)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(file_server.requests) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))  # while a file is received, unpacked or cut
        process.kill()
        process.wait()
        present = read_files(tmp_path / "killed" / name) if (tmp_path / "killed" / name).exists() else {}
        assert present.items() <= read_files(tmp_path / "once" / name).items()  # no incomplete file
    assert any(first for _, first in file_server.requests[begun:])  # some runs resumed where another was killed
    assert subprocess.run(command).returncode == 0
    assert read_files(tmp_path / "killed" / name) == read_files(tmp_path / "once" / name)
    assert not (tmp_path / "killed" / name / ".download").exists()

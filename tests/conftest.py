"""Fixtures of all tests: no network, tiny models, and stored values of the published code where available.

The process that distributes the tests over others loads this file too, and the others wait for it: slow imports are in
the fixtures.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from download_server import FileServer, serve
from safetensors import safe_open

import clap.config.overrides  # noqa: F401 (registers the resolvers that conf/config.yaml uses)
from clap.__main__ import main
from clap.corpus import Clip

if TYPE_CHECKING:
    from torch import Tensor

    from clap import Clap, ClapTrainer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # on tiny tensors, threads cost more than they save

# Temporary files are in memory if there is room: MLflow waits for the disk after every line that it logs.
MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# These start programs. They run first and in one process, which needs one server of forks (script.py) and one of each
# module fixture; the other process takes over tests from the end of the list.
PROGRAMS = (
    "test_train", "test_sweep", "test_tracking_view", "test_tracking_upload", "test_tracking_serve", "test_extending",
    "test_own_evaluator", "test_corpora",
)  # fmt: skip

CONF = Path(__file__).resolve().parents[1] / "conf"
# A model with one-second windows, whose training step takes milliseconds.
TINY = (
    "audio_encoder=htsat_nano",
    "audio_encoder.embed_dim=16",
    "audio_encoder.depths=[1,1,1]",
    "audio_encoder.image_size=128",
    "audio_encoder.patch_size=8",
    "audio_encoder.frontend.window=1.0",
    "text_encoder=gpt2_nano",
    "text_encoder.model.vocab_size=300",
    "text_encoder.model.n_embd=32",
    "text_encoder.model.n_layer=1",
    "text_encoder.model.embd_pdrop=0.0",
    "text_encoder.model.attn_pdrop=0.0",
    "text_encoder.model.resid_pdrop=0.0",
    "embed_dim=16",
)
CAPTIONS = (
    "a dog barks",
    "rain on a roof",
    "a low beep, then a whistle",
    "birds sing while wind blows",
    "someone knocks twice",
    "an engine hums",
    "a siren wails slowly",
    "water drips in a cave",
)

# In near-silent bins, a float32 spectrum is rounding error, which depends on the CPU model in MKL: up to 0.05 dB.
# Tolerances of models whose published code computes such a spectrum are multiplied by this.
FFT_ROUNDING = 20.0
GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "reference" / "golden"
METADATA = GOLDEN.parents[1] / "data" / "metadata"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(PROGRAMS)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Ten recordings whose samples count up."""
    from ramps import write_ramps

    return write_ramps(tmp_path_factory.mktemp("ramps"))


@pytest.fixture
def file_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of tmp_path/served; failed requests are retried without a pause."""
    monkeypatch.setattr("clap.fetch.WAIT", 0.0)
    with serve(tmp_path / "served") as server:
        yield server


@pytest.fixture(scope="session")
def published_index() -> Callable[[str], Path]:
    """`published_index("clotho")` -> folder with the published index files of a corpus; skips the test if absent."""

    def find(name: str) -> Path:
        if not (METADATA / name).is_dir():
            pytest.skip(f"the published index of {name} is not next to this checkout")
        return METADATA / name

    return find


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: small layers gain nothing from more, and threads are slow on a busy machine."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict, dict[str, Tensor]]]:
    """`golden(name)` -> config and tensors of a stored file; skips the test if the file is absent."""
    from safetensors.torch import load_file

    def read(name: str) -> tuple[dict, dict[str, Tensor]]:
        path = GOLDEN / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"stored values {name}.safetensors are not next to this checkout")
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        return config, load_file(path)

    return read


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., dict]:
    """`tiny_config("fusion=aff", ...)` -> the composed training config of a tiny model, as plain data."""
    from hydra import compose, initialize_config_dir

    from clap.config import read_config

    @functools.cache  # composing takes six times as long as building the model
    def compose_once(*overrides: str) -> dict:
        with initialize_config_dir(str(CONF), version_base=None):
            return read_config(compose("config", overrides=[*TINY, *overrides]))

    return lambda *overrides: copy.deepcopy(compose_once(*overrides))


@pytest.fixture(scope="session")
def tiny_clap(tiny_config: Callable[..., dict]) -> Callable:
    """`tiny_clap("fusion=aff", ...)` -> a tiny Clap with random weights and a tokenizer trained on CAPTIONS."""
    import torch

    from clap.model import Clap

    torch.set_num_threads(1)  # a second thread does not help models this small

    def make(*overrides: str) -> Clap:
        torch.manual_seed(0)
        clap = Clap.from_config(tiny_config(*overrides))
        clap.text_encoder.tokenizer.train(list(CAPTIONS))
        return clap

    return make


@pytest.fixture
def make_trainer(tiny_clap: Callable) -> Callable:
    """`make_trainer(...)` -> a trainer of a tiny model on a dozen synthetic scenes, two steps an epoch."""
    import torch
    from torch.optim import AdamW

    from clap import ClapDataset, ClapTrainer, SymmetricCrossEntropyLoss
    from clap.dataset.loader import make_loader
    from clap.dataset.synthetic import Synthetic
    from clap.training.trainer_settings import TrainerSettings

    def make(epochs: int = 2, *, lr: float = 1e-3, evaluators: dict | None = None, **options) -> ClapTrainer:
        torch.manual_seed(0)
        clap = tiny_clap()
        corpus = Synthetic(num_train=12, num_val=6, num_test=6)
        loaders = []
        for kind in ("train", "val", "test"):
            dataset = ClapDataset(corpus, kind, sample_rate=clap.sample_rate, window=clap.window)
            shuffle = kind == "train"
            loaders.append(make_loader(dataset, clap.collate, batch_size=6, num_workers=0, shuffle=shuffle))
        optimizer = AdamW(clap.parameters(), lr=lr, fused=True)
        settings = TrainerSettings(**options)
        criterion = SymmetricCrossEntropyLoss()
        return ClapTrainer(*loaders, clap, optimizer, criterion, epochs, evaluators=evaluators, settings=settings)

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_clap: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of `tiny_clap()`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_clap().save(folder)
    return folder


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight WAV files of 0.5 to 4 seconds at 16 kHz, each a tone in noise."""
    folder = tmp_path_factory.mktemp("tones")
    paths = []
    for i in range(8):
        path = folder / f"tone {i}.wav"
        soundfile.write(path, make_tone(200.0 * (i + 1), 0.5 * (i + 1), seed=i), 16_000, subtype="FLOAT")
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def sweep_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a train.py that takes milliseconds, see sweeps.py."""
    from sweeps import write_project

    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store to copy, one for all processes: creating its tables takes seconds."""
    from clap.tracking.store import open_store

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    open_store(f"sqlite:///{folder / 'empty' / 'mlflow.db'}")
    return folder / "empty" / "mlflow.db"


@pytest.fixture
def sweep_store(empty_store: Path, tmp_path: Path) -> Path:
    """An empty MLflow store in tmp_path."""
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """A WAV file that does not decode."""
    path = tmp_path / "unreadable.wav"
    path.write_bytes(b"no audio" * 100)
    return path


def run_command(verb: str, *arguments: str | Path) -> None:
    """Run `python -m clap VERB` in this process."""
    main([verb, *map(str, arguments)])


def make_tone(frequency: float, duration: float, *, sample_rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A tone in noise, float32 (samples,)."""
    time = np.arange(round(duration * sample_rate)) / sample_rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    return (0.4 * np.sin(2 * np.pi * frequency * time) + 0.02 * noise).astype(np.float32)

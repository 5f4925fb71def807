"""Every corpus trains and evaluates end to end on a replica of its published layout, including clips of 30 seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from replicas import write_fsd50k, write_wavcaps
from script import ROOT, run_script
from test_huggingface import save_splits

from clap.commands.synthesize import synthesize
from clap.config.build import build
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import make_loader
from clap.dataset.registry import open_corpus
from clap.evaluation.evaluator import Evaluator
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.training.trainer import ClapTrainer
from clap.training.trainer_settings import TrainerSettings

LONG = {"min_duration": 30.0, "max_duration": 30.0}  # seconds
SHORT = {"min_duration": 3.0, "max_duration": 3.0}


def write_replica(folder: Path, name: str) -> Path:
    if name == "clotho_audiocaps":
        for part in ("clotho", "audiocaps"):
            synthesize(folder / part, layout=part, num_clips=10, sample_rate=8_000, **SHORT)
    elif name == "fsd50k":
        write_fsd50k(folder, seconds=30.0)
    elif name == "wavcaps":
        write_wavcaps(folder, seconds=30.0)
    elif name == "huggingface":
        save_splits(folder)
    else:
        length = LONG if name in ("clotho", "audiocaps") else SHORT
        synthesize(folder, layout=name, num_clips=20, sample_rate=8_000, **length)
    return folder


def train(config: dict, folder: Path) -> dict[str, float]:
    """Train for two steps in this process, as train.py does."""
    torch.manual_seed(0)
    clap, settings = Clap.from_config(config), config["dataset"]
    corpus = open_corpus(settings)
    loaders = {}
    for kind in ("train", "val", "test"):
        if corpus.clips(kind):
            data = ClapDataset(config=config, kind=kind, window=clap.window)
            loaders[kind] = make_loader(data, clap.collate, batch_size=4, num_workers=0, shuffle=kind == "train")
    evaluators = {name: build(node, Evaluator) for name, node in config["evaluation"].items()}
    optimizer = torch.optim.AdamW(clap.parameters(), lr=1e-3)
    trainer = ClapTrainer(
        loaders["train"], loaders.get("val"), loaders.get("test"), clap, optimizer, SymmetricCrossEntropyLoss(),
        epochs=1, evaluators=evaluators, settings=TrainerSettings(max_steps=2),
    )  # fmt: skip
    return trainer.train_and_eval(folder)


@pytest.mark.parametrize(
    ("name", "options", "metric"),
    [
        ("clotho", [], "test/clotho/text_to_audio/recall_at_10"),
        ("clotho", ["dataset.captions=all"], "val/clotho/audio_to_text/recall_at_1"),
        ("audiocaps", ["dataset.version=v2"], "test/audiocaps/text_to_audio/recall_at_10"),
        ("clotho_audiocaps", ["dataset.weights.clotho=2"], "test/clotho/text_to_audio/recall_at_10"),
        ("clotho_audiocaps", [], "test/audiocaps/text_to_audio/recall_at_10"),
        ("urbansound8k", [], "test/urbansound8k/zero_shot/accuracy"),
        ("fsd50k", ["evaluation=[retrieval,zero_shot]"], "test/fsd50k/zero_shot/accuracy"),
        ("wavcaps", ["dataset.val_fraction=0.4"], "val/wavcaps/text_to_audio/recall_at_10"),
        (
            "wavcaps",
            ["dataset.val_fraction=0.4", "dataset.captions=keywords"],
            "val/wavcaps/text_to_audio/recall_at_10",
        ),
        ("huggingface", ["dataset.name=mine"], "test/mine/text_to_audio/recall_at_10"),
    ],
)
def test_corpus_trains_and_evaluates(tiny_config: Callable, tmp_path: Path, name: str, options: list, metric: str):
    root = write_replica(tmp_path / "data", name)
    metrics = train(tiny_config(f"dataset={name}", f"dataset.root={root}", *options), tmp_path / "run")
    assert 0 <= metrics[metric] <= 1


def test_train_and_evaluate_report_each_corpus_of_a_mixture_and_others(tmp_path: Path):
    root, other = write_replica(tmp_path / "data", "clotho_audiocaps"), write_replica(tmp_path / "other", "esc50")
    run = [
        *TINY,
        "dataset=clotho_audiocaps",
        f"dataset.root={root}",
        "experiment=debug",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    again = [f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best'}", f"hydra.run.dir={tmp_path / 'again'}"]
    for script, arguments in {"train.py": run, "evaluate.py": again}.items():
        others = f"evaluation_datasets={{esc50: {{root: {other}}}}}"
        result = run_script(ROOT / script, *arguments, others, "tracking.uri=null", cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
    metrics, found = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "again"))
    assert found == {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert {name.split("/")[1] for name in found} == {"clotho", "audiocaps", "esc50"}

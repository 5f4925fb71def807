"""Seconds of a job before it runs: a few timed training steps, or counted arithmetic on the meta device."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from clap.config import find_absent
from clap.config.build import build_module
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import EpochSampler, make_loader
from clap.device import choose_device
from clap.model import Clap
from clap.study.downloads import build_on_meta, count_parameters, open_train_set
from clap.training.cost import count_flops, step_flops
from clap.training.precision import make_autocast
from clap.training.trainer import ClapTrainer
from clap.training.trainer_settings import TrainerSettings

SMALL = 50_000_000  # parameters: up to here a model is built and timed


def estimate(config: dict[str, Any], *, ready: bool) -> tuple[float | None, str]:
    """Seconds of a job's training and validation, and the basis of the estimate; None and the reason if unknown.

    Args:
        ready: nothing is missing, so that the model can be built.
    """
    if absent := find_absent(config):
        return None, f"unknown: {absent}"
    try:
        dataset, clap = open_train_set(config), build_on_meta(config)
    except (FileNotFoundError, ValueError) as error:
        return None, f"unknown: {error}"
    steps = count_steps(config, dataset)
    if ready and count_parameters(clap) <= SMALL:
        seconds = time_step(config, dataset)
        return steps * seconds, f"timed: {steps:.0f} steps of {seconds:.2f} s"
    settings = config["dataset"]
    flops = step_flops(clap, batch_size=settings["batch_size"], max_duration=settings.get("max_duration", 0))
    speed = measure_speed(config["device"], config["trainer"]["precision"])
    return (
        steps * flops / speed,
        f"counted: {steps:.0f} steps of {flops / 1e9:,.0f} GFLOP at {speed / 1e9:,.0f} GFLOP/s",
    )


def count_steps(config: Mapping[str, Any], dataset: ClapDataset) -> float:
    """Training steps of a run, and a third of one for each batch of validation, which has no backward pass."""
    settings, trainer = config["dataset"], TrainerSettings(**config["trainer"])
    epoch = EpochSampler(len(dataset), settings["batch_size"], shuffle=True)
    steps = trainer.num_steps(epoch)
    validations = -(-steps // (len(epoch) * trainer.eval_every))
    clips = sum(len(corpus.clips("val")[: settings["max_clips"]]) for corpus in dataset.corpora)
    return steps + validations * clips / settings["batch_size"] / 3


def time_step(config: dict[str, Any], dataset: ClapDataset) -> float:
    """Seconds of a training step of this cell, from random weights, on a batch of its corpus."""
    clap = Clap.from_config(config)
    clap.freeze(config["freeze"])
    clap.to(choose_device(config["device"]))
    dataset.window = clap.window
    batch_size = config["dataset"]["batch_size"]
    loader = make_loader(dataset, clap.collate, batch_size=batch_size, num_workers=0, shuffle=True)
    criterion = build_module(config["loss"]).to(clap.device)
    total_steps = TrainerSettings(**config["trainer"]).num_steps(loader)
    optimizer, _ = instantiate(config["optimizer"])(clap, criterion, total_steps=total_steps)
    settings = TrainerSettings(precision=config["trainer"]["precision"])
    trainer = ClapTrainer(loader, None, None, clap, optimizer, criterion, settings=settings)
    batch = next(iter(loader)).to(clap.device)
    clap.train()
    return time_calls(lambda: trainer.train_step(batch), device=clap.device)


@functools.cache
def measure_speed(device: str, precision: str) -> float:
    """Operations per second in a training step of one transformer layer as wide as BERT's."""
    device = choose_device(device)
    layer = nn.TransformerEncoderLayer(768, nhead=12, dim_feedforward=3072, activation="gelu", batch_first=True)
    x = torch.randn(4 if device.type == "cpu" else 1024, 64, 768, device=device, requires_grad=True)
    layer, autocast = layer.to(device), make_autocast(precision, device)[0]

    def step() -> None:
        with autocast:
            y = layer(x)
        y.float().square().mean().backward()

    return count_flops(step) / time_calls(step, device=device)


def time_calls(call: Callable[[], object], *, device: torch.device) -> float:
    """Seconds of a call, the minimum of three after a warm-up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

"""Seconds of a job before it runs: a few timed training steps, or counted arithmetic on the meta device."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.utils import instantiate

from clap.config import find_absent
from clap.config.build import build_module
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import EpochSampler, make_loader
from clap.device import choose_device
from clap.model import Clap
from clap.study.downloads import build_on_meta, count_parameters, open_train_set
from clap.training.cost import measure_gemm_rate, step_flops, synchronize
from clap.training.parallel import GlobalStep
from clap.training.trainer import ClapTrainer
from clap.training.trainer_settings import TrainerSettings

SMALL = 50_000_000  # parameters: up to here a model is built and timed
STEP_SHARE = 0.55  # of the GEMM rate, in a training step on two CPU cores: experiments/benchmarks/training.py
gemm_rate = functools.cache(measure_gemm_rate)  # once per plan


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
    flops = step_flops(clap, batch_size=settings["batch_size"], duration=settings.get("max_duration", 0))
    speed = STEP_SHARE * gemm_rate(choose_device(config["device"]), config["trainer"]["precision"])
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
    clap.freeze(config["freeze"] if config["trainer"].get("unfreeze_at") is None else [])  # as the costliest step
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
    step = GlobalStep.agree(batch, stop=False)
    return time_calls(lambda: trainer.train_step(batch, step), device=clap.device)


def time_calls(call: Callable[[], object], *, device: torch.device) -> float:
    """Seconds of a call, the minimum of three after a warm-up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

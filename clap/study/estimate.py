"""Seconds of a job before it runs: a few timed training steps, or counted arithmetic on the meta device."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import instantiate

from clap.config import find_absent
from clap.config.augmentation_settings import AugmentationSettings
from clap.config.build import build_module
from clap.dataset.clips import ClapDataset
from clap.dataset.evaluation_options import plan_evaluation_datasets
from clap.dataset.loader import EpochSampler, make_loader
from clap.device import choose_device
from clap.model import Clap
from clap.study.downloads import build_on_meta, count_parameters, open_train_set
from clap.training.acceleration import matmul_precision
from clap.training.cost import step_flops, synchronize
from clap.training.parallel import GlobalStep
from clap.training.trainer import ClapTrainer
from clap.training.trainer_settings import TrainerSettings
from clap.training.utilization import measure_peak

SMALL = 50_000_000  # parameters: up to here a model is built and timed
STEP_SHARE = 0.4  # of the GEMM rate, in a training step; 0.26 on a shared host, see experiments/benchmarks/training.py
measure_once = functools.cache(measure_peak)  # per plan


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
    settings, trainer = config["dataset"], TrainerSettings(**config["trainer"])
    flops = step_flops(clap, batch_size=settings["batch_size"], duration=settings.get("max_duration", 0))
    flops = flops * count_passes(trainer) // 3
    device = choose_device(config["device"])
    speed = STEP_SHARE * measure_once(device, precision=trainer.precision, tf32=trainer.tf32)
    return (
        steps * flops / speed,
        f"counted: {steps:.0f} steps of {flops / 1e9:,.0f} GFLOP at {speed / 1e9:,.0f} GFLOP/s",
    )


def count_passes(settings: TrainerSettings) -> int:
    """Forward passes that take as long as a training step: 3, and 1 for each time that clips are encoded again."""
    return 3 + (settings.micro_batch_size is not None) + settings.activation_checkpointing


def count_steps(config: Mapping[str, Any], dataset: ClapDataset) -> float:
    """Training steps of a run, and a third of one for each batch of validation, which has no backward pass."""
    settings, trainer = config["dataset"], TrainerSettings(**config["trainer"])
    epoch = EpochSampler(len(dataset), settings["batch_size"], shuffle=True)
    steps = trainer.num_steps(epoch)
    validations = -(-steps // (len(epoch) * trainer.eval_every))
    clips = sum(len(part.clips("val")[: settings["max_clips"]]) for part in dataset.parts)
    others = plan_evaluation_datasets(config).values()
    clips += sum(len(other.corpus.clips("val")[: other.settings.max_clips]) for other in others)
    return steps + validations * clips / settings["batch_size"] / 3


def time_step(config: dict[str, Any], dataset: ClapDataset) -> float:
    """Seconds of a training step of this cell, from random weights, on a batch of its corpus; not compiled."""
    clap = Clap.from_config(config).augment(AugmentationSettings(**config["augmentation"]))
    clap.freeze(config["freeze"] if config["trainer"].get("unfreeze_at") is None else [])  # as the costliest step
    clap.to(choose_device(config["device"]))
    dataset.window = clap.window
    batch_size = config["dataset"]["batch_size"]
    loader = make_loader(dataset, clap.collate, batch_size=batch_size, num_workers=0, shuffle=True)
    criterion = build_module(config["loss"]).to(clap.device)
    total_steps = TrainerSettings(**config["trainer"]).num_steps(loader)
    optimizer, _ = instantiate(config["optimizer"])(clap, criterion, total_steps=total_steps)
    settings = replace(TrainerSettings(**config["trainer"]), monitor=None, patience=None, compile=False)
    trainer = ClapTrainer(loader, None, None, clap, optimizer, criterion, settings=settings)
    batch = next(iter(loader)).to(clap.device)
    clap.train()
    step = GlobalStep.agree(batch, stop=False)
    with matmul_precision(clap.device, tf32=settings.tf32):
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

"""What a run that resumes shares with its first part: settings, data and optimizer are compared, never ignored."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from clap.config.result_settings import find_changes, log_new_keys, read_result_settings
from clap.config.values import shell_override, single_key
from clap.dataset.clips import ClapDataset
from clap.dataset.digest import digest_clips
from clap.training.sharding import is_sharded, shard_like

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)
# Settings that a resumed run may change: how long it trains, and what it reads and writes on the way, and the kernel of
# the optimizer. Files with clips are compared by their content, as data.
APPLIED = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.allow_leaks",
    "trainer.patience",
    "trainer.eval_every",  # also _steps and _minutes
    "trainer.log_every",
    "trainer.save_every",
    "trainer.keep_best",
    "trainer.keep_last",
    "trainer.activation_checkpointing",
    "trainer.fused_attention",  # the same attention, up to rounding; off by default in earlier versions
    "trainer.parallel",
    "loss.gather",  # the same loss, up to rounding
    "optimizer.algorithm.fused",
    "dataset.max_bad_fraction",
    "dataset.metadata",
    "dataset.exclude",
    "dataset.rewritings",
)
TARS = re.compile(r"dataset\.(train|val|test)(\.\d+)?")  # paths and addresses of shards, which may move as files do
CORPUS = "dataset._target_"  # a key of every composed config
IMPLEMENTATION = {"fused", "foreach"}  # of an optimizer's step: a choice of kernels, which a resumed run may change
SCHEDULED = {"lr", "betas", "momentum"}  # what schedulers change in a parameter group; LambdaLR only the first


def read_settings(trainer: "ClapTrainer") -> dict[str, Any]:
    """The settings that a result depends on, {dotted key: value}; without a config those that the trainer knows."""
    loader = trainer.train_loader
    known = {
        "trainer": asdict(trainer.settings),
        "seed": loader.dataset.seed,
        "dataset": {"batch_size": loader.batch_sampler.batch_size},
        "augmentation": asdict(trainer.clap.augmentation),
    }
    return read_result_settings(known | trainer.config)


def digest_dataset(dataset: ClapDataset) -> Tensor:
    """Digests of the clips of a split (clips,), see `digest_clips`, and of the rewritten captions that it draws."""
    digests = digest_clips(dataset.clips).copy()
    if (rewritten := getattr(dataset, "rewritten", None)) is not None:
        digests += rewritten.digests
    return torch.from_numpy(digests)


def is_applied(key: str) -> bool:
    """Whether a resumed run may change a setting."""
    return key.startswith(APPLIED) or TARS.fullmatch(key) is not None


def check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log the settings that a resumed run changes.

    Raises:
        ValueError: a setting differs that a resumed run cannot change.
    """
    if not (CORPUS in before and CORPUS in now):  # a trainer without a config knows some settings only
        before, now = ({key: flat[key] for key in before.keys() & now.keys()} for flat in (before, now))
    log_new_keys(before, now)
    changes = find_changes(before, now)
    if refused := [key for key in changes if not is_applied(single_key(key))]:
        old, new = (", ".join(f"{key}={changes[key][side]}" for key in refused) for side in (0, 1))
        raise ValueError(
            f"{folder} was trained with {old}, now it is {new}; restore the value to resume, or start a new run with "
            f"{shell_override('init_from', folder)} (a resumed run may change {', '.join(APPLIED)})"
        )
    for key, (old, new) in changes.items():
        log.warning("resumes with %s=%s, before it was %s", key, new, old)


def check_data(
    folder: Path, before: Mapping[str, Tensor], now: Mapping[str, Tensor], datasets: Mapping[str, ClapDataset]
) -> None:
    """Compare the splits with those of the first part of a run.

    Args:
        before, now: split -> digests of its clips (clips,).

    Raises:
        ValueError: a split has other clips, captions, labels, or another order.
    """
    for split in sorted(before.keys() | now.keys()):
        old, new = (digests.get(split, torch.zeros(0, dtype=torch.long)) for digests in (before, now))
        common = min(len(old), len(new))
        first = next(iter((old[:common] != new[:common]).nonzero().flatten().tolist()), common)
        if first < max(len(old), len(new)):
            where = f"clip {first + 1}, now {datasets[split].clips[first].id}" if first < len(new) else "at the end"
            raise ValueError(
                f"{folder} was trained on other data: the {split} split had {len(old)} clips and has {len(new)}, the "
                f"first difference is {where}; restore the files (index, exclude, rewritings, missing recordings) to "
                f"resume, or start a new run with {shell_override('init_from', folder)}"
            )


def check_optimizer(
    folder: Path, state: Mapping[str, Any], optimizer: Optimizer, scheduler: LRScheduler | None
) -> None:
    """Compare the hyperparameters of an optimizer with those of its saved state, which would replace them.

    Args:
        state: of the checkpoint, with those of the optimizer and scheduler.

    Raises:
        ValueError: a hyperparameter or the number of groups differs, or one has a scheduler and the other has none.
    """
    groups = state["optimizer"]["param_groups"], optimizer.param_groups
    counts = [f"{len(own)} parameter group{'s' * (len(own) != 1)}" for own in groups]
    schedules = [f"{'no' if own is None else 'a'} scheduler" for own in (state["scheduler"], scheduler)]
    for old, new in (counts, schedules):
        if old != new:
            raise ValueError(
                f"{folder} was trained with {old}, now with {new}; restore the optimizer to resume, or start a new "
                f"run with {shell_override('init_from', folder)}"
            )
    varied = {"lr"} if isinstance(scheduler, LambdaLR) else SCHEDULED if scheduler is not None else set()
    for number, (old, new) in enumerate(zip(*groups, strict=True)):
        for key in sorted(new.keys() - varied - IMPLEMENTATION - {"params", "name"}):
            if to_plain(old.get(key)) != to_plain(new[key]):
                raise ValueError(
                    f"{folder} was trained with {key}={old.get(key)} in the optimizer's group "
                    f"{new.get('name', number)}, now it is {new[key]}; restore the value to resume, or start a new run "
                    f"with {shell_override('init_from', folder)}"
                )


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a saved state into an optimizer, which keeps its own kernels and the memory layout of its parameters.

    PyTorch would replace both, and fused kernels read moments in the order of their memory.
    """
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    kept = [old | {key: new[key] for key in IMPLEMENTATION & new.keys()} for old, new in groups]
    optimizer.load_state_dict({**state, "param_groups": kept})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            if is_sharded(parameter):
                values[name] = shard_like(value, parameter)
            elif value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def to_plain(value: Any) -> Any:
    """Lists and tuples, as of betas, compare equal."""
    return tuple(value) if isinstance(value, list | tuple) else value

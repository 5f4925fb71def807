"""What a run that resumes shares with its first part: settings, data and optimizer are compared, never ignored."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from clap.config.result_settings import find_changes, read_result_settings
from clap.dataset.clips import ClapDataset
from clap.dataset.digest import digest_clips
from clap.training.trainer_settings import TrainerSettings

log = logging.getLogger(__name__)
# Settings that a resumed run may change: how long it trains, and what it reads and writes on the way. Files with clips
# are compared by their content, as data.
APPLIED = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.patience",
    "trainer.eval_every",
    "trainer.log_every",
    "trainer.save_every",
    "dataset.max_bad_fraction",
    "dataset.metadata",
    "dataset.exclude",
)
SCHEDULED = {"lr", "betas", "momentum"}  # what schedulers change in a parameter group; LambdaLR only the first


def read_settings(settings: TrainerSettings, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result depends on, {dotted key: value}; of a trainer without a config `trainer.*` only."""
    return read_result_settings({"trainer": asdict(settings)} | dict(config))


def digest_dataset(dataset: ClapDataset) -> Tensor:
    """Digests of the clips of a split (clips,), see `digest_clips`."""
    return torch.from_numpy(digest_clips(dataset.clips).copy())


def check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log the settings that a resumed run changes.

    Raises:
        ValueError: a setting differs that a resumed run cannot change.
    """
    if not (is_composed(before) and is_composed(now)):  # of a trainer without a config, which knows `trainer.*` only
        before, now = ({key: flat[key] for key in before.keys() & now.keys()} for flat in (before, now))
    changes = find_changes(before, now)
    if refused := [key for key in changes if not key.startswith(APPLIED)]:
        old, new = (", ".join(f"{key}={changes[key][side]}" for key in refused) for side in (0, 1))
        raise ValueError(
            f"{folder} was trained with {old}, now it is {new}; restore the value to resume, or start a new run with "
            f"init_from={folder} (a resumed run may change {', '.join(APPLIED)})"
        )
    for key, (old, new) in changes.items():
        log.warning("resumes with %s=%s, before it was %s", key, new, old)


def is_composed(settings: Mapping[str, Any]) -> bool:
    return any(not key.startswith("trainer.") for key in settings)


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
                f"first difference is {where}; restore the files (index, exclude, missing recordings) to resume, or "
                f"start a new run with init_from={folder}"
            )


def check_optimizer(
    folder: Path, before: Mapping[str, Any], optimizer: Optimizer, scheduler: LRScheduler | None
) -> None:
    """Compare the hyperparameters of an optimizer with those of its saved state, which would replace them.

    Raises:
        ValueError: a hyperparameter or the number of groups differs.
    """
    varied = {"lr"} if isinstance(scheduler, LambdaLR) else SCHEDULED if scheduler is not None else set()
    groups = before["param_groups"], optimizer.param_groups
    if len(groups[0]) != len(groups[1]):
        raise ValueError(
            f"{folder} was trained with {len(groups[0])} parameter groups, now there are {len(groups[1])}; restore the "
            f"optimizer to resume, or start a new run with init_from={folder}"
        )
    for number, (old, new) in enumerate(zip(*groups, strict=True)):
        for key in sorted(new.keys() - varied - {"params", "name"}):
            if to_plain(old.get(key)) != to_plain(new[key]):
                raise ValueError(
                    f"{folder} was trained with {key}={old.get(key)} in the optimizer's group "
                    f"{new.get('name', number)}, now it is {new[key]}; restore the value to resume, or start a new run "
                    f"with init_from={folder}"
                )


def to_plain(value: Any) -> Any:
    """Lists and tuples, as of betas, compare equal."""
    return tuple(value) if isinstance(value, list | tuple) else value

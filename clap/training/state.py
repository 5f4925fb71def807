"""State that is saved and restored, so that a resumed run ends exactly as an uninterrupted one."""

import logging
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from clap import checkpoint
from clap.atomic import name_file
from clap.process_group import gather_objects, is_main, rank, world_size
from clap.run_folder import HISTORY, RECORD, append_changed, git_commit, own_folder
from clap.tracking.tracker import check_store, recorded_run
from clap.training import ema
from clap.training.comparison import check_data, check_optimizer, check_settings, load_optimizer, read_settings
from clap.training.grad_cache import read_random_state, write_random_state
from clap.training.kept import is_step, link_folder
from clap.training.parallel import seed_rank
from clap.training.sharding import gather_full, load_weights

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)


def collect_state(trainer: "ClapTrainer") -> dict[str, Any]:
    """Contents of trainer.pt: the training state besides weights and tokenizer; collective."""
    random = gather_objects(read_random_state(trainer.clap.device))
    validation = trainer.validation
    return {
        "optimizer": gather_full(trainer.optimizer.state_dict()),
        "scheduler": trainer.scheduler.state_dict() if trainer.scheduler is not None else None,
        "scaler": trainer.scaler.state_dict(),
        "criterion": trainer.criterion.state_dict(),
        "random": [cpu for cpu, _ in random],  # of each rank
        "random_cuda": [cuda for _, cuda in random if cuda is not None],
        "position": {"epoch": trainer.epoch, "step": trainer.step, "step_in_epoch": trainer.step_in_epoch},
        "best": {
            "metric": validation.best_metric,
            "metrics": validation.best_metrics,
            "since": validation.since_best,
        },
        "ema": gather_full(trainer.ema.averages),
        "kept": {"last": trainer.kept.last, "best": trainer.kept.best},
        "validation_pending": trainer.validation_pending,
        "problems": trainer.skipped.problems,
        **trainer.meter.state_dict(),
        "settings": read_settings(trainer),
        "data": trainer.data_digests,
        "origin": trainer.origin,
        "run_id": trainer.tracker.run_id if trainer.tracker is not None else None,
    }


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write trainer.pt into a checkpoint folder."""
    path = folder / checkpoint.TRAINER
    with name_file(path), path.open("wb") as file:  # of a path, torch.save hides why it cannot be written
        torch.save(state, file)


def restore_state(trainer: "ClapTrainer", folder: Path) -> None:
    """Load weights, tokenizer and the state of `collect_state` from a `last` checkpoint.

    Raises:
        FileNotFoundError, ValueError: a file of the checkpoint is missing or damaged, or its settings, data or
            optimizer differ from those of the trainer.
    """
    state = add_unrecorded(read_trainer_state(folder), trainer)
    compare(folder, state, trainer)
    if trainer.clap.text_encoder is not None:
        trainer.clap.tokenizer.load(checkpoint.find_file(folder, checkpoint.TOKENIZER))
    load_weights(trainer.clap, checkpoint.read_weights(folder))
    load_optimizer(trainer.optimizer, state["optimizer"])
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(state["scheduler"])
        update_learning_rates(trainer.scheduler)
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.criterion.load_state_dict(state["criterion"])
    position, best, validation = state["position"], state["best"], trainer.validation
    trainer.epoch, trainer.step, trainer.step_in_epoch = (position[key] for key in ("epoch", "step", "step_in_epoch"))
    validation.best_metric, validation.best_metrics = best["metric"], best["metrics"]
    validation.since_best = best["since"]
    trainer.ema.load(state["ema"])
    trainer.kept.last, trainer.kept.best = state["kept"]["last"], state["kept"]["best"]
    trainer.validation_pending = state["validation_pending"]
    trainer.skipped.problems, trainer.origin = state["problems"], state["origin"]
    trainer.meter.load_state_dict(state)
    restore_random_state(state, trainer)


def restore_random_state(state: Mapping[str, Any], trainer: "ClapTrainer") -> None:
    """Set the random state of this rank; on another number of processes, one derived from seed, step and rank."""
    cpu, cuda = state["random"], state["random_cuda"]
    if len(cpu) == world_size():
        write_random_state((cpu[rank()], cuda[rank()] if len(cuda) == world_size() else None))
        return
    seed_rank(trainer.train_loader.dataset.seed, trainer.step)
    log.warning(
        "processes: %d so far, %d from here on; the global batch stays, random numbers are drawn from seed, step and "
        "rank, and the weights will differ from those of a run with one number of processes",
        *(len(cpu), world_size()),
    )


def compare(folder: Path, state: Mapping[str, Any], trainer: "ClapTrainer") -> None:
    """Reject a checkpoint whose settings, data or optimizer differ, before any of it is loaded."""
    if state["settings"] is None:
        log.warning("%s is of an earlier version, which recorded neither settings nor data: not compared", folder)
    else:
        check_settings(folder, state["settings"], read_settings(trainer))
        check_data(folder, state["data"], trainer.data_digests, trainer.validation.datasets)
    check_optimizer(folder, state, trainer.optimizer, trainer.scheduler)


def update_learning_rates(scheduler: LRScheduler) -> None:
    """Set the learning rates of the schedule as it is now: its length changes with trainer.max_epochs."""
    if isinstance(scheduler, LambdaLR):
        groups = scheduler.optimizer.param_groups
        for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)


def add_unrecorded(state: dict[str, Any], trainer: "ClapTrainer") -> dict[str, Any]:
    """Add the closest known values of what a checkpoint of an earlier version does not record."""
    window = round(trainer.clap.audio_encoder.window * trainer.clap.sample_rate)
    clips = trainer.train_loader.dataset.clips
    problems = {clips[key].id if isinstance(key, int) else key: why for key, why in state["problems"].items()}
    unrecorded = {
        "ema": {},
        "kept": {"last": [], "best": [(state["best"]["metric"], 0)]},  # of an unknown step
        "validation_pending": False,
        "samples_seen": state["clips_seen"] * window,
        "train_seconds": state["seconds"],  # with those of validation
        "parts": {},
        "unlogged": [],
        "logged_time": state["seconds"],
        "logged_parts": {},
        "peaks": {},
        "settings": None,
        "origin": {"git_commit": ["unknown"], "machine": ["unknown"]},
    }
    if not isinstance(state["random"], list):  # one process, with the states of all GPUs of its machine
        state = state | {"random": [state["random"]], "random_cuda": state["random_cuda"][:1]}
    return unrecorded | state | {"problems": problems}


def extend_origin(before: Mapping[str, Sequence[str]], *, machine: str) -> dict[str, list[str]]:
    """Add the machine and the commit of this code to those of the first part of a resumed run."""
    now = {"git_commit": git_commit(Path(__file__).parent), "machine": machine}
    return {key: append_changed(before.get(key, []), name) for key, name in now.items()}


@contextmanager
def own_run_folder(trainer: "ClapTrainer", out_path: Path) -> Iterator[None]:
    """Own the folder that a trainer writes to while it trains; rank 0 does for all.

    Raises:
        FileExistsError: it holds another run than the one that this trainer resumes or has begun.
        BlockingIOError: another process owns it.
    """
    advice = "give another out_path, or resume this run with trainer.resume(OUT_PATH/checkpoints/last)"
    options = {"resume": trainer.resumed_from, "advice": advice, "written": (RECORD, HISTORY)}
    with own_folder(out_path, **options) if is_main() else nullcontext():
        source, trainer.checkpoints = trainer.resumed_from, out_path / "checkpoints"
        is_other = source is not None and out_path.resolve() not in source.parents
        if is_step(source):
            forget_best(trainer)
            trainer.validation_pending = trainer.validation.has("val")
        elif is_other:
            copy_checkpoints(trainer, source.parent)
        if is_other:
            trainer.set_tags({"resumed_from": source})
        trainer.kept.begin(trainer.checkpoints, source)
        trainer.resumed_from = trainer.checkpoints.resolve()
        yield


def copy_checkpoints(trainer: "ClapTrainer", source: Path) -> None:
    """Copy `best` and `ema` of the run folder that a run in another folder resumes from."""
    for name in ("best", ema.NAME):
        if is_main() and (source / name).is_dir():
            link_folder(source / name, trainer.checkpoints / name)
    if not (source / "best").is_dir():
        forget_best(trainer)


def forget_best(trainer: "ClapTrainer") -> None:
    """Make the next validation the best: the best checkpoint is missing, or of later steps than those of the run."""
    trainer.validation.best_metric, trainer.kept.best = -math.inf, []


def find_resumable_run(resume: str | None, run_dir: Path, *, uri: str | None) -> tuple[Path | None, str | None]:
    """The checkpoint that a run resumes from (see `checkpoint.find_resume`), and its MLflow run in the store `uri`.

    A run that starts from a checkpoint of another run folder is a new run in MLflow: an id belongs to one folder.

    Raises:
        ConnectionError, ValueError: the store cannot be opened. FileNotFoundError: there is no such checkpoint.
    """
    check_store(uri)
    folder = checkpoint.find_resume(resume, run_dir)
    is_other = folder is not None and not folder.resolve().is_relative_to(run_dir.resolve())
    return folder, None if is_other else recorded_run(run_dir, uri) or read_run_id(folder)


def read_run_id(folder: Path | None) -> str | None:
    """The id of the MLflow run of a checkpoint; None without a checkpoint."""
    return read_trainer_state(folder)["run_id"] if folder is not None else None


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """Contents of trainer.pt; only plain data and tensors are loaded (`weights_only`).

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged or refused.
    """
    path = checkpoint.find_file(folder, checkpoint.TRAINER)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: refused, damaged or not limited to plain data and tensors; no code was executed; "
            "resume from another checkpoint"
        ) from None
    except checkpoint.READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: damaged or truncated ({reason}); resume from another checkpoint") from None

"""ClapTrainer: fetch, forward, loss, backward, clip, step, log, validate, save."""

import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from clap import checkpoint
from clap.atomic import write_json
from clap.dataset.loader import Batch, EpochSampler
from clap.evaluation.embedded_split import make_evaluation_loader
from clap.evaluation.evaluator import (
    Evaluator,
    check_evaluators,
    evaluate,
    find_needs,
    name_metrics,
)
from clap.evaluation.results import Evaluation, merge_metrics, write_results
from clap.evaluation.retrieval import Retrieval
from clap.model import Clap
from clap.run_folder import COST, METRICS, count_clips, describe_clips, find_count, read_counts
from clap.tracking.tracker import Tracker
from clap.training.cost import measure_cost, reset_peak_memory
from clap.training.interrupt import stop_on_signal

log = logging.getLogger(__name__)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ClapTrainer:
    """Trains a model, keeps its best and last checkpoint, and evaluates the best one on the test split.

    Args:
        train_loader, val_loader, test_loader: over ClapDatasets; without validation the last checkpoint is the best.
        criterion: two embeddings, logit scale, clip ids -> loss.
        epochs, max_steps: whichever ends first.
        evaluators: by name; retrieval if not given.
        monitor: metric, higher is better, that chooses the best checkpoint; None for the first evaluator's first, the
            mean over corpora where there are several.
        patience: validations without a better monitor before training stops; None trains to the end.
        eval_every: epochs between validations.
        precision: `fp32`, `bf16` or `fp16` (GPU only) for the two towers; the log-mel and the loss stay float32.
        max_grad_norm: gradients are clipped to this norm.
        log_every: steps between logged training values.
        save_every: steps between writing `last`, besides the ends of epochs.
        tracker: where values go besides the run folder.
        saved_config: joins the model's config in checkpoints (dataset, evaluation).
    """

    def __init__(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader | None,
        test_loader: DataLoader | None,
        clap: Clap,
        optimizer: Optimizer,
        criterion: nn.Module,
        epochs: int = 10,
        *,
        scheduler: LRScheduler | None = None,
        max_steps: int | None = None,
        evaluators: Mapping[str, Evaluator] | None = None,
        monitor: str | None = None,
        patience: int | None = None,
        eval_every: int = 1,
        precision: str = "fp32",
        max_grad_norm: float = 1.0,
        log_every: int = 10,
        save_every: int | None = None,
        tracker: Tracker | None = None,
        saved_config: Mapping[str, Any] | None = None,
    ) -> None:
        check_settings(
            epochs=epochs,
            max_steps=max_steps,
            patience=patience,
            eval_every=eval_every,
            log_every=log_every,
            save_every=save_every,
        )
        self.train_loader, self.val_loader, self.test_loader = train_loader, val_loader, test_loader
        self.clap, self.optimizer, self.criterion, self.scheduler = clap, optimizer, criterion, scheduler
        self.epochs, self.max_steps, self.max_grad_norm = epochs, max_steps, max_grad_norm
        self.evaluators = dict(evaluators or {"retrieval": Retrieval()})
        loaders = {"train": train_loader} | ({} if val_loader is None else {"val": val_loader})
        needs = [kind for kind in find_needs(self.evaluators) if kind in loaders]
        self.other_loaders = {kind: make_evaluation_loader(loaders[kind]) for kind in needs}
        others = {kind: loader.dataset for kind, loader in self.other_loaders.items()}
        for loader in filter(None, (val_loader, test_loader)):
            check_evaluators(loader.dataset, self.evaluators, others)
        self.monitors, self.patience, self.eval_every = self.find_monitors(monitor), patience, eval_every
        self.log_every, self.save_every = log_every, save_every
        self.tracker, self.saved_config = tracker, dict(saved_config or {})
        self.autocast, self.scaler = set_precision(precision, clap.device)
        self.epoch, self.step, self.step_in_epoch = 0, 0, 0
        self.best_metric, self.best_metrics, self.evaluations_since_best = -math.inf, {}, 0
        self.problems: dict[int, str] = {}
        self.recent: list[tuple[Tensor, int]] = []  # loss and clips of each step since the last logged one
        self.recent_start = self.fit_start = time.perf_counter()
        self.seconds_before = 0.0  # of training before a resume
        self.clips_seen = 0
        self.checkpoints = Path("checkpoints")
        if clap.tokenizer.needs_training:
            clap.tokenizer.train(train_loader.dataset.captions)

    def train_and_eval(self, out_path: str | Path = "outputs/run") -> dict[str, float]:
        """Train, then evaluate the best checkpoint on the test split; all results and checkpoints go to out_path."""
        self.fit(out_path)
        return self.test(out_path)

    def fit(self, out_path: str | Path) -> None:
        """Train to the end; Ctrl-C or SIGTERM writes the `last` checkpoint after the step it falls into."""
        self.checkpoints = Path(out_path) / "checkpoints"
        self.fit_start = time.perf_counter()
        reset_peak_memory()
        self.clap.tokenizer.cache_captions(getattr(self.train_loader.dataset, "captions", []))  # a subset tells none
        with stop_on_signal() as stop_requested:
            while not self.finished():
                self.train_epoch(stop_requested)
                self.validate()
        self.tell_left_out()
        self.seconds_before, self.fit_start = self.seconds(), time.perf_counter()

    def tell_left_out(self) -> None:
        """Say how many clips training had to do without, in the log and as a tag."""
        dataset = self.train_loader.dataset
        count = len(dataset.missing) + len(self.problems)
        if count:
            log.warning("%d of %d training clips were left out, the log names them", count, dataset.num_listed)
        if self.tracker is not None:
            used = {"clips": f"{dataset.num_listed - count} of {dataset.num_listed}"}
            clips = describe_clips(used | {"published_clips": dataset.num_published})
            self.tracker.set_tags({f"{dataset.kind}/{dataset.name}/clips": clips})

    def seconds(self) -> float:
        """Seconds of training and validation so far, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.fit_start

    def finished(self) -> bool:
        waited = self.patience is not None and self.evaluations_since_best >= self.patience
        return waited or self.epoch >= self.epochs or self.out_of_steps()

    def out_of_steps(self) -> bool:
        return self.max_steps is not None and self.step >= self.max_steps

    def train_epoch(self, stop_requested: list[int]) -> None:
        self.clap.train()
        self.recent_start = time.perf_counter()
        steps, done = len(self.train_loader), self.step_in_epoch
        with tqdm(total=steps, initial=done, desc=f"epoch {self.epoch + 1}/{self.epochs}", unit="step") as bar:
            for batch in self.batches():
                self.step_in_epoch += 1
                bar.update()
                self.note_problems(batch)
                if len(batch) > 1:
                    self.train_step(batch.to(self.clap.device), bar)
                if stop_requested or (self.save_every and self.step % self.save_every == 0):
                    self.save("last")
                if stop_requested:
                    raise KeyboardInterrupt
                if self.out_of_steps():
                    break
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def batches(self) -> Iterator[Batch]:
        """The rest of this epoch; our own sampler goes straight to it, another's batches are drawn and dropped."""
        sampler = self.train_loader.batch_sampler
        if isinstance(sampler, EpochSampler):
            sampler.seek(self.epoch, self.step_in_epoch)
            return iter(self.train_loader)
        return itertools.islice(self.train_loader, self.step_in_epoch, None)

    def train_step(self, batch: Batch, bar: tqdm) -> None:
        with self.autocast:
            audio, text, logit_scale = self.clap(batch.waveform, batch.lengths, batch.token_ids, batch.token_mask)
        loss = self.criterion(audio.float(), text.float(), logit_scale, batch.clip_ids)
        if not torch.isfinite(loss):
            self.stop_at_bad_loss(loss, batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        self.clap.clamp_logit_scale()
        self.step += 1
        self.clips_seen += len(batch)
        self.recent.append((loss.detach(), len(batch)))
        if self.step % self.log_every == 0:
            self.log_recent(bar)

    def log_recent(self, bar: tqdm) -> None:
        """Mean loss and speed since the last time, to the progress bar and the tracker."""
        now = time.perf_counter()
        loss = torch.stack([loss for loss, _ in self.recent]).mean().item()
        speed = sum(clips for _, clips in self.recent) / (now - self.recent_start)
        self.recent, self.recent_start = [], now
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} clips/s")
        values = {
            "train/loss": loss,
            "train/clips_per_second": speed,
            "train/learning_rate": self.optimizer.param_groups[-1]["lr"],
            "train/logit_scale": self.clap.logit_scale.exp().item(),
        }
        self.track(values)

    def track(self, values: Mapping[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log_metrics(values, step=self.step)

    def stop_at_bad_loss(self, loss: Tensor, batch: Batch) -> None:
        dataset = self.train_loader.dataset
        names = ", ".join(dataset.clips[i].id for i in batch.index.tolist()[:4])
        raise ValueError(
            f"the loss is {loss.item()} at step {self.step + 1} (epoch {self.epoch + 1}, batch {self.step_in_epoch}: "
            f"{names}, ...); checkpoints stay as they were; lower optimizer.lr or set trainer.precision=fp32"
        )

    def note_problems(self, batch: Batch) -> None:
        """Name and count clips that could not be used; too many of them stop the run."""
        dataset = self.train_loader.dataset
        for index, problem in batch.problems.items():
            if index in self.problems:
                continue
            log.warning("left out of training: %s", problem)
            self.problems[index] = problem
            count = len(self.problems) + len(dataset.missing)
            if count > dataset.max_bad_fraction * dataset.num_listed:
                raise ValueError(
                    f"{count} of {dataset.num_listed} training clips cannot be used, the last: {problem}; "
                    f"mend them or raise dataset.max_bad_fraction, now {dataset.max_bad_fraction:g} (`python -m clap "
                    "check` names all)"
                )

    def validate(self) -> None:
        """Evaluate after an epoch, keep the best checkpoint, write the last one."""
        ended = self.epoch >= self.epochs or self.out_of_steps()
        if self.val_loader is not None and (ended or self.epoch % self.eval_every == 0):
            self.compare(self.evaluate(self.val_loader))
        elif self.val_loader is None:
            self.save("best")
        self.save("last")
        if self.tracker is not None:
            self.tracker.flush()

    def evaluate(self, loader: DataLoader) -> dict[str, Evaluation]:
        return evaluate(self.clap, loader, self.evaluators, other_loaders=self.other_loaders)

    def compare(self, results: Mapping[str, Evaluation]) -> None:
        metrics = merge_metrics(results)
        self.track(metrics)
        found = sum(metrics[name] for name in self.monitors) / len(self.monitors)
        counts = count_clips(result.protocol for result in results.values())
        clips = ", ".join(dict.fromkeys(find_count(name, counts) for name in self.monitors))
        log.info("epoch %d, step %d: %s %.4f, %s", self.epoch, self.step, " and ".join(self.monitors), found, clips)
        improved = found > self.best_metric
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        if found >= self.best_metric:  # of equals the later one, which has learnt for longer
            self.best_metric, self.best_metrics = found, metrics
            self.record(results)
            self.save("best")

    def record(self, results: Mapping[str, Evaluation]) -> None:
        """Keep what stands behind the numbers, and have the tracker say how many clips that is."""
        run_dir = self.checkpoints.parent
        write_results(run_dir / "evaluation", results)
        if self.tracker is not None:
            self.tracker.set_tags(read_counts(run_dir))

    def find_monitors(self, monitor: str | None) -> list[str]:
        """Full names of the metrics whose mean chooses the best checkpoint; none without validation."""
        if self.val_loader is None:
            return []
        dataset = self.val_loader.dataset
        names = [name for name in name_metrics(dataset, self.evaluators) if not name.endswith("median_rank")]
        if monitor is not None and monitor not in names:
            raise ValueError(f"trainer.monitor={monitor} is not one of {', '.join(names)}")
        first = names[0].removeprefix(f"{dataset.kind}/{dataset.names[0]}/")
        return [monitor] if monitor else [f"{dataset.kind}/{corpus}/{first}" for corpus in dataset.names]

    def test(self, out_path: str | Path) -> dict[str, float]:
        """Evaluate the best checkpoint on the test split; writes metrics.json, cost.json and per-query results."""
        out_path = Path(out_path)
        self.checkpoints = out_path / "checkpoints"
        metrics = dict(self.best_metrics)
        self.clap.load_state_dict(checkpoint.read_weights(self.checkpoints / "best"))
        if self.test_loader is not None:
            results = self.evaluate(self.test_loader)
            self.record(results)
            metrics |= merge_metrics(results)
            self.track(merge_metrics(results))
        write_json(out_path / METRICS, metrics)
        write_json(out_path / COST, self.cost())
        return metrics

    def cost(self) -> dict[str, float]:
        """Seconds and speed of training, peak memory since its start, parameters, and gigaflops of one clip forward."""
        return {
            "seconds": round(self.seconds_before, 1),
            "clips_per_second": round(self.clips_seen / max(self.seconds_before, 1e-9), 1),
            "steps": self.step,
            **measure_cost(self.clap),
        }

    def save(self, name: str) -> None:
        """Write checkpoints/<name>; only `last` carries what resuming needs."""

        def write(folder: Path) -> None:
            self.clap.save(folder, self.saved_config)
            if name == "last":
                torch.save(self.state(), folder / checkpoint.TRAINER)

        checkpoint.write_folder(self.checkpoints / name, write)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as if it had never stopped."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "scaler": self.scaler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "position": {"epoch": self.epoch, "step": self.step, "step_in_epoch": self.step_in_epoch},
            "best": {"metric": self.best_metric, "metrics": self.best_metrics, "since": self.evaluations_since_best},
            "problems": self.problems,
            "clips_seen": self.clips_seen,
            "seconds": self.seconds(),
            "run_id": self.tracker.run_id if self.tracker is not None else None,
        }

    def resume(self, folder: str | Path) -> None:
        """Go on from a `last` checkpoint: weights, optimizer, schedule, random states, position in the epoch."""
        folder = Path(folder)
        state = checkpoint.read_trainer_state(folder)
        self.clap.text_encoder.tokenizer.load(checkpoint.find_file(folder, checkpoint.TOKENIZER))
        self.clap.load_state_dict(checkpoint.read_weights(folder))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.criterion.load_state_dict(state["criterion"])
        for key, value in state["position"].items():
            setattr(self, key, value)
        best = state["best"]
        self.best_metric, self.best_metrics = best["metric"], best["metrics"]
        self.evaluations_since_best = best["since"]
        self.problems, self.clips_seen = state["problems"], state["clips_seen"]
        self.seconds_before = state["seconds"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        log.info("resumed from %s at epoch %d, step %d", folder, self.epoch + 1, self.step)


def check_settings(**settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"trainer.{'max_epochs' if name == 'epochs' else name}={value} must be at least 1")


def set_precision(precision: str, device: torch.device) -> tuple[AbstractContextManager, torch.amp.GradScaler]:
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("trainer.precision=fp16 needs a GPU; on a CPU choose bf16 or fp32")
    dtype = PRECISIONS[precision]
    autocast = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    return autocast, torch.amp.GradScaler(device.type, enabled=precision == "fp16")

"""ClapTrainer: fetch, forward, loss, backward, clip, step, log, validate, save."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

from clap import checkpoint
from clap.atomic import write_json
from clap.classifier import ClapAudioClassifier
from clap.corpus import SPLITS
from clap.dataset.clips import list_captions
from clap.dataset.loader import Batch, EpochSampler, closing_workers, prefetch
from clap.evaluation.evaluation_set import EvaluationSet
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.results import Evaluation, merge_metrics, write_results
from clap.lora import has_adapters, merge_weights, with_adapters
from clap.model import Clap
from clap.process_group import any_rank, is_main, wait_for_all
from clap.progress import log_above_bars, progress_bar
from clap.run_folder import COST, METRICS, append_history, read_counts
from clap.saving import write_model
from clap.tracking.tracker import Tracker
from clap.training.acceleration import matmul_precision, prepare
from clap.training.comparison import digest_dataset
from clap.training.cost import reset_peak_memory
from clap.training.ema import WeightAverage, test_average, validate_average
from clap.training.finite import ADVICE, NotFiniteError, StepGuard, find_non_finite, name_batch
from clap.training.frozen_cache import FrozenTowers
from clap.training.interrupt import stop_on_signal
from clap.training.intervals import Interval
from clap.training.kept import KeptCheckpoints, name_step
from clap.training.meter import Meter
from clap.training.objective import open_objective
from clap.training.parallel import GlobalStep, average_statistics, seed_rank
from clap.training.precision import make_autocast
from clap.training.preflight import check_trainer
from clap.training.profile import profile_steps
from clap.training.run_log import RunLog
from clap.training.sharding import clip_gradients, gather_full, load_weights, total_norm
from clap.training.skipped_clips import SkippedClips
from clap.training.state import collect_state, own_run_folder, restore_state, write_state
from clap.training.train_clips import TrainClips, mark_test_clips
from clap.training.trainer_settings import TrainerSettings
from clap.training.unfreezing import unfreeze_if_due
from clap.training.validation import Validation

log = logging.getLogger(__name__)
SAVED = ("dataset", "evaluation")  # groups of the composed config that checkpoints have next to the model's


class ClapTrainer:
    """Trains a model, keeps its best and last checkpoint, and evaluates the best one on the test split.

    Args:
        train_loader, val_loader, test_loader: over ClapDatasets; without validation the last checkpoint is the best.
        clap: or a classifier, whose training clips have labels.
        criterion: two embeddings, logit scale, clip ids -> loss; of a classifier a `ClassificationLoss`.
        epochs: replaces `settings.max_epochs`.
        scheduler: stepped after each optimizer step.
        evaluators: by name, retrieval if not given; an EvaluationSet evaluates another dataset under its name.
        settings: the options `trainer.*`; their defaults if not given.
        tracker: logs metrics and tags to MLflow; the run folder has them in any case.
        config: the composed config of the run. Checkpoints have its dataset and evaluation, and a resume compares it.

    Raises:
        ValueError: an option is out of range, or an evaluator cannot run on a split.
    """

    def __init__(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader | None,
        test_loader: DataLoader | None,
        clap: Clap | ClapAudioClassifier,
        optimizer: Optimizer,
        criterion: nn.Module,
        epochs: int | None = None,
        *,
        scheduler: LRScheduler | None = None,
        evaluators: Mapping[str, Evaluator | EvaluationSet] | None = None,
        settings: TrainerSettings | None = None,
        tracker: Tracker | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.train_loader, self.val_loader, self.test_loader = train_loader, val_loader, test_loader
        self.clap, self.optimizer, self.criterion, self.scheduler = clap, optimizer, criterion, scheduler
        settings = settings or TrainerSettings()
        self.settings = settings if epochs is None else replace(settings, max_epochs=epochs)
        self.epochs = self.settings.max_epochs
        self.loaders = dict(zip(SPLITS, (train_loader, val_loader, test_loader), strict=True))
        self.validation = Validation(clap, self.loaders, evaluators or {}, self.settings)
        self.tracker, self.config = tracker, dict(config or {})
        autocast, self.scaler = make_autocast(self.settings.precision, clap.device)
        self.guard = StepGuard(optimizer, self.scaler, self.named_parameters)
        prepare(clap, self.settings)
        options = {"autocast": autocast, "scaler": self.scaler}
        self.objective = open_objective(clap, criterion, train_loader.dataset, self.settings, **options)
        self.frozen = FrozenTowers(self)
        self.epoch, self.step, self.step_in_epoch, self.learning_rate = 0, 0, 0, 0.0
        self.meter, self.skipped = Meter(clap, self.settings), SkippedClips(train_loader.dataset)
        self.evaluations = Interval(steps=self.settings.eval_every_steps, minutes=self.settings.eval_every_minutes)
        self.saves = Interval(steps=self.settings.save_every, minutes=self.settings.save_every_minutes)
        self.kept, self.ema = KeptCheckpoints(self.settings), WeightAverage(clap, self.settings.ema_decay)
        self.train_clips = TrainClips(train_loader.dataset, self.config)
        self.run_log = RunLog(self)
        self.origin: dict[str, list[str]] = {}  # commits and machines, more than one if the run was resumed with others
        self.validation_pending = False
        self.after_validation: Callable[..., None] | None = None  # of step, metric and `ended`; it may raise to stop
        self.checkpoints, self.resumed_from = Path("checkpoints"), None
        if clap.text_encoder is not None and clap.tokenizer.needs_training:
            clap.tokenizer.train(list_captions(train_loader.dataset))

    def train_and_eval(self, out_path: str | Path = "outputs/run") -> dict[str, float]:
        """Train, then evaluate the best checkpoint on the test split; all results and checkpoints go to out_path."""
        self.fit(out_path)
        return self.test(out_path)

    def fit(self, out_path: str | Path) -> None:
        """Train to the end.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM arrived; the `last` checkpoint is of the step in which it did.
            NotFiniteError: a loss, gradient or weight is not finite. ValueError: too many clips cannot be used.
            FileExistsError: out_path holds another run than the one that this trainer resumes or has begun.
        """
        check_trainer(self)
        if self.settings.log_every <= self.settings.num_steps(self.train_loader) - self.step:
            self.meter.utilization.measure_peak()
        reset_peak_memory()
        if self.clap.text_encoder is not None:
            self.clap.tokenizer.cache_captions(list_captions(self.train_loader.dataset))
        self.objective.prepare()
        if self.resumed_from is None and not is_main():  # all have built the model with the random numbers of rank 0
            seed_rank(torch.initial_seed())
        with (
            log_above_bars(),
            own_run_folder(self, Path(out_path)),
            self.train_clips.recorded(Path(out_path)),
            self.frozen.active(),
            closing_workers(self.train_loader),
            stop_on_signal() as stop_requested,
            profile_steps(self),
            self.meter.fit_time.running(),
        ):
            self.run_log.log_header()
            if self.validation_pending:
                self.validate()
            while not self.finished():
                with self.meter.train_time.running():
                    self.train_epoch(stop_requested)
                self.end_epoch(stop_requested)
            if any_rank(bool(stop_requested)):  # in the last validation
                self.interrupt()
        self.skipped.log_total()
        self.set_tags(self.skipped.count_used())

    def train_epoch(self, stop_requested: list[int]) -> None:
        self.clap.train()
        steps, done, name = len(self.train_loader), self.step_in_epoch, f"epoch {self.epoch + 1}/{self.epochs}"
        with progress_bar(total=steps, initial=done, desc=name, unit="step", leave=False) as bar:
            self.meter.clock.restart()
            for batch in self.batches():
                elapsed = (self.evaluations.has_elapsed(), self.saves.has_elapsed())
                step = GlobalStep.agree(batch, stop=bool(stop_requested), elapsed=elapsed)
                self.meter.clock.lap("data")
                if step.stop:
                    self.interrupt()
                self.step_in_epoch += 1
                bar.update()
                if step.problems:
                    self.skipped.add(batch.problems)
                if sum(step.rows) > 1:
                    with matmul_precision(self.clap.device, tf32=self.settings.tf32):
                        self.train_step(batch, step)
                    if self.step % self.settings.log_every == 0:
                        self.log_training(bar)
                    self.save_or_validate(*step.elapsed)
                if self.out_of_steps():
                    break
                self.meter.clock.restart()
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def train_step(self, batch: Batch, step: GlobalStep) -> None:
        unfreeze_if_due(self)
        loss, compute_gradients = self.objective.forward(self.frozen.complete(batch), step.rows)
        self.guard.check()  # of the step before, whose gradients are still there
        self.optimizer.zero_grad()
        compute_gradients()
        self.meter.clock.lap("forward_backward")
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        finite_norm = self.guard.suppress(loss, norm, name_batch(self, batch))
        if self.settings.max_grad_norm is not None:
            clip_gradients(parameters, self.settings.max_grad_norm, finite_norm)
        self.guard.step()
        self.scaler.update()
        average_statistics(self.clap)
        self.learning_rate = self.optimizer.param_groups[0]["lr"]  # of this step; the logit scale's group is the first
        if self.scheduler is not None:
            self.scheduler.step()
        self.objective.end_step()
        self.ema.update()
        self.step += 1
        self.meter.add(batch, loss, norm, clips=sum(step.rows), samples=step.samples)

    def save_or_validate(self, evaluation_elapsed: bool, save_elapsed: bool) -> None:
        """Within an epoch: validate, or write the last checkpoint, if it is due; at its end `end_epoch` does."""
        with self.meter.train_time.paused():
            is_due = self.evaluations.is_due(self.step, elapsed=evaluation_elapsed)
            self.validation_pending = is_due and self.validation.has("val")
            if self.step_in_epoch == len(self.train_loader) or self.out_of_steps():
                return
            if self.validation_pending:
                self.save("last")
                self.validate()
            elif self.saves.is_due(self.step, elapsed=save_elapsed):
                self.save("last")

    def end_epoch(self, stop_requested: list[int]) -> None:
        """Write the last checkpoint, and validate if it is due."""
        ended = self.epoch >= self.epochs or self.out_of_steps()
        if not self.validation.has("val"):
            self.save("best")
            validate_average(self)
        else:
            self.validation_pending |= ended or self.epoch % self.settings.eval_every == 0
        if any_rank(bool(stop_requested)):
            self.interrupt()
        self.save("last")
        if self.validation_pending:
            self.validate()
        else:
            self.run_log.log_epoch()
        self.frozen.log_use()
        if self.tracker is not None:
            self.tracker.flush()

    def interrupt(self) -> None:
        """Write the last checkpoint, and stop."""
        with self.meter.train_time.paused():
            self.save("last")
        log.warning("stopped at step %d, saved in %s", self.step, self.checkpoints / "last")
        raise KeyboardInterrupt

    def validate(self) -> None:
        """Evaluate on the validation split, keep the best checkpoint, and write the last one again with the result.

        A run that is stopped in here has a `last` with `validation_pending`: its resume validates before it trains.
        """
        results = self.evaluate("val")
        self.log_metrics(merge_metrics(results))
        is_best = self.validation.update_best(results)
        is_kept = self.kept.add_validation(self.validation.metric, self.step)
        self.run_log.log_epoch(results, is_best=is_best)
        if is_best:
            self.write_evaluations(results)
        if is_kept:
            self.save("best" if is_best else name_step(self.step))
        validate_average(self)
        self.validation_pending = False
        self.evaluations.restart()
        self.save("last")
        if self.after_validation is not None:
            self.after_validation(self.step, self.validation.metric, ended=self.finished())

    def evaluate(self, split: str) -> dict[str, Evaluation]:
        with self.frozen.active():
            return self.validation.evaluate(split)

    def save(self, name: str) -> None:
        """Write checkpoints/<name> on rank 0; only `last` holds what resuming needs. Collective.

        Raises:
            NotFiniteError: a weight, or the step before, is not finite. OSError: the folder cannot be written.
        """
        self.guard.check()
        model = gather_full(self.clap.state_dict())
        if found := find_non_finite([*model.items(), *self.criterion.state_dict(prefix="loss.").items()]):
            raise NotFiniteError(f"{found} after step {self.step}; {ADVICE}")
        if name == "last":
            self.kept.add_last(self.step)
        state = collect_state(self) if name == "last" else None

        def write(folder: Path) -> None:
            weights = model if name == "last" else merge_weights(self.clap, model)
            extra = {key: self.config[key] for key in SAVED if key in self.config}
            same = None if has_adapters(model) else self.kept.find_weights(name, self.step)
            write_model(self.clap, folder, extra, weights, same=same)
            self.train_clips.link_into(folder)
            if state is not None:
                write_state(folder, state)

        if is_main():
            with self.kept.replacing(self.checkpoints / name, self.step):
                checkpoint.write_folder(self.checkpoints / name, write)
        wait_for_all()
        self.saves.restart()

    def resume(self, folder: str | Path) -> None:
        """Continue from a `last` checkpoint: weights, optimizer, schedule, random states, position in the epoch.

        Raises:
            ValueError: the run had other data, or settings that a resumed run cannot change.
        """
        restore_state(self, Path(folder))
        self.resumed_from = Path(folder).resolve()
        log.info("resumed from %s at epoch %d, step %d", folder, self.epoch + 1, self.step)

    @functools.cached_property
    def data_digests(self) -> dict[str, Tensor]:
        """Digests of the clips (clips,) of each dataset that a resumed run must have again."""
        return {name: digest_dataset(dataset) for name, dataset in self.validation.datasets.items()}

    def test(self, out_path: str | Path) -> dict[str, float]:
        """Evaluate the best checkpoint on the test split; writes metrics.json, cost.json and per-query scores."""
        out_path = Path(out_path)
        self.checkpoints = out_path / "checkpoints"
        metrics = self.validation.best_metrics | test_average(self)
        load_weights(self.clap, with_adapters(self.clap, checkpoint.read_weights(self.checkpoints / "best")))
        mark_test_clips(self)
        results = self.evaluate("test")
        if results:
            self.write_evaluations(results)
            metrics |= merge_metrics(results)
            self.log_metrics(merge_metrics(results))
        cost = self.cost()
        if is_main():
            write_json(out_path / METRICS, metrics)
            write_json(out_path / COST, cost)
            self.validation.write_reports(out_path / "evaluation", results)
        self.log_metrics({f"cost/{name}": value for name, value in cost.items()})
        self.frozen.log_use()
        self.run_log.log_end(metrics, cost)
        return metrics

    def cost(self) -> dict[str, float]:
        """Time, speed, peak memory and size of the training; docs/runs.md describes each number."""
        return self.meter.cost(steps=self.step)

    def batches(self) -> Iterator[Batch]:
        """The rest of this epoch: EpochSampler starts there, of another sampler the first batches are dropped."""
        sampler, rest = self.train_loader.batch_sampler, self.train_loader
        if isinstance(sampler, EpochSampler):
            sampler.seek(self.epoch, self.step_in_epoch)
        else:
            if isinstance(self.train_loader.sampler, DistributedSampler):
                self.train_loader.sampler.set_epoch(self.epoch)
            rest = itertools.islice(rest, self.step_in_epoch, None)
        return prefetch(rest, self.clap.device)

    def finished(self) -> bool:
        patience = self.settings.patience
        waited = patience is not None and self.validation.since_best >= patience
        return waited or self.epoch >= self.epochs or self.out_of_steps()

    def out_of_steps(self) -> bool:
        return self.settings.max_steps is not None and self.step >= self.settings.max_steps

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters of the model, then of the loss."""
        yield from self.clap.named_parameters()
        yield from self.criterion.named_parameters(prefix="loss")

    def log_training(self, bar: tqdm) -> None:
        """Log means since the last time, and show the progress."""
        self.guard.check()
        metrics = self.meter.read() | self.objective.read_metrics()
        self.run_log.log_progress(metrics, bar)
        metrics["train/learning_rate"] = self.learning_rate
        self.log_metrics(metrics)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append metrics to metrics.jsonl in the run folder, and send them to MLflow if there is a tracker."""
        if self.tracker is not None:
            self.tracker.log_metrics(metrics, step=self.step)
        elif is_main():
            append_history(self.checkpoints.parent, metrics, step=self.step)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        if self.tracker is not None:
            self.tracker.set_tags(tags)

    def write_evaluations(self, results: Mapping[str, Evaluation]) -> None:
        """Write per-query scores and protocols to the run folder, and set the numbers of clips as tags."""
        if is_main():
            write_results(self.checkpoints.parent / "evaluation", results)
            self.set_tags(read_counts(self.checkpoints.parent))

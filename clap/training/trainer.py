"""ClapTrainer: fetch, forward, loss, backward, clip, step, log, validate, save."""

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from clap import checkpoint
from clap.atomic import name_file, write_json
from clap.corpus import SPLITS
from clap.dataset.loader import Batch, EpochSampler
from clap.evaluation.embedded_split import make_evaluation_loader
from clap.evaluation.evaluator import Evaluator, check_evaluators, evaluate_split, find_needs, is_monitor, name_metrics
from clap.evaluation.results import Evaluation, merge_metrics, write_results
from clap.evaluation.retrieval import Retrieval
from clap.model import Clap
from clap.progress import progress_bar
from clap.run_folder import COST, METRICS, count_clips, describe_clips, find_count, read_counts
from clap.tracking.tracker import Tracker
from clap.training.comparison import digest_dataset
from clap.training.cost import measure_peaks, measure_size, reset_peak_memory
from clap.training.finite import ADVICE, MIN_LOSS_SCALE, NotFiniteError, describe_gradients, find_non_finite
from clap.training.interrupt import stop_on_signal
from clap.training.precision import make_autocast
from clap.training.preflight import check_trainer
from clap.training.state import collect_state, own_run_folder, restore_state
from clap.training.stopwatch import Stopwatch
from clap.training.trainer_settings import TrainerSettings

log = logging.getLogger(__name__)
SAVED = ("dataset", "evaluation")  # groups of the composed config that checkpoints have next to the model's


class ClapTrainer:
    """Trains a model, keeps its best and last checkpoint, and evaluates the best one on the test split.

    Args:
        train_loader, val_loader, test_loader: over ClapDatasets; without validation the last checkpoint is the best.
        criterion: two embeddings, logit scale, clip ids -> loss.
        epochs: replaces `settings.max_epochs`.
        scheduler: stepped after each optimizer step.
        evaluators: by name; retrieval if not given.
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
        clap: Clap,
        optimizer: Optimizer,
        criterion: nn.Module,
        epochs: int | None = None,
        *,
        scheduler: LRScheduler | None = None,
        evaluators: Mapping[str, Evaluator] | None = None,
        settings: TrainerSettings | None = None,
        tracker: Tracker | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.train_loader, self.val_loader, self.test_loader = train_loader, val_loader, test_loader
        self.clap, self.optimizer, self.criterion, self.scheduler = clap, optimizer, criterion, scheduler
        settings = settings or TrainerSettings()
        self.settings = settings if epochs is None else replace(settings, max_epochs=epochs)
        self.epochs = self.settings.max_epochs
        self.evaluators = dict(evaluators or {"retrieval": Retrieval()})
        self.other_loaders = self.make_other_loaders()
        self.monitors = self.find_monitors()
        self.tracker, self.config = tracker, dict(config or {})
        self.autocast, self.scaler = make_autocast(self.settings.precision, clap.device)
        self.epoch, self.step, self.step_in_epoch = 0, 0, 0
        self.learning_rate = 0.0
        self.best_metric, self.best_metrics, self.evaluations_since_best = -math.inf, {}, 0
        self.problems: dict[str, str] = {}  # id of a training clip -> why it is skipped
        self.origin: dict[str, list[str]] = {}  # commits and machines, more than one if the run was resumed with others
        self.unlogged: list[tuple[Tensor, int]] = []  # loss and number of clips of each step since the last logged one
        self.fit_time, self.train_time = Stopwatch(), Stopwatch()  # of everything; of steps and waiting for data
        self.logged_time = 0.0  # train_time of the last logged step
        self.clips_seen, self.samples_seen = 0, 0
        self.peaks: dict[str, int] = {}  # of memory before a resume
        self.validation_pending = False
        self.checkpoints, self.resumed_from = Path("checkpoints"), None
        if clap.tokenizer.needs_training:
            clap.tokenizer.train(train_loader.dataset.captions)

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
        reset_peak_memory()
        self.clap.tokenizer.cache_captions(getattr(self.train_loader.dataset, "captions", []))  # a Subset has none
        with own_run_folder(self, Path(out_path)), stop_on_signal() as stop_requested, self.fit_time.running():
            if self.validation_pending:
                self.validate()
            while not self.finished():
                with self.train_time.running():
                    self.train_epoch(stop_requested)
                self.end_epoch()
        self.log_skipped_clips()

    def train_epoch(self, stop_requested: list[int]) -> None:
        self.clap.train()
        steps, done = len(self.train_loader), self.step_in_epoch
        with progress_bar(total=steps, initial=done, desc=f"epoch {self.epoch + 1}/{self.epochs}", unit="step") as bar:
            for batch in self.batches():
                self.step_in_epoch += 1
                bar.update()
                self.check_problems(batch)
                if len(batch) > 1:
                    self.train_step(batch.to(self.clap.device))
                    if self.step % self.settings.log_every == 0:
                        self.log_training(bar)
                save_every = self.settings.save_every
                if stop_requested or (save_every and self.step % save_every == 0):
                    with self.train_time.paused():
                        self.save("last")
                if stop_requested:
                    log.warning("stopped at step %d, saved in %s", self.step, self.checkpoints / "last")
                    raise KeyboardInterrupt
                if self.out_of_steps():
                    break
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def train_step(self, batch: Batch) -> None:
        with self.autocast:
            audio, text, logit_scale = self.clap(batch.waveform, batch.lengths, batch.token_ids, batch.token_mask)
        loss = self.criterion(audio.float(), text.float(), logit_scale, batch.clip_ids)
        if not torch.isfinite(loss):
            self.stop(f"the loss is {loss.item()}", batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm) and not self.skips_step():
            self.stop(describe_gradients(self.optimizer, self.named_parameters()), batch)
        if self.settings.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.learning_rate = self.optimizer.param_groups[0]["lr"]  # of this step; the logit scale's group is the first
        if self.scheduler is not None:
            self.scheduler.step()
        self.clap.clamp_logit_scale()
        self.step += 1
        self.clips_seen += len(batch)
        self.samples_seen += int(batch.lengths.sum())
        self.unlogged.append((loss.detach(), len(batch)))

    def end_epoch(self) -> None:
        """Write the last checkpoint, and validate if it is due."""
        ended = self.epoch >= self.epochs or self.out_of_steps()
        if self.val_loader is None:
            self.save("best")
        else:
            self.validation_pending = ended or self.epoch % self.settings.eval_every == 0
        self.save("last")
        if self.validation_pending:
            self.validate()
        if self.tracker is not None:
            self.tracker.flush()

    def validate(self) -> None:
        """Evaluate on the validation split, keep the best checkpoint, and write the last one again with the result.

        A run that is stopped in here has a `last` with `validation_pending`: its resume validates before it trains.
        """
        self.update_best(self.evaluate(self.val_loader))
        self.validation_pending = False
        self.save("last")

    def save(self, name: str) -> None:
        """Write checkpoints/<name>; only `last` holds what resuming needs.

        Raises:
            ValueError: a weight is not finite. OSError: the folder cannot be written.
        """
        weights = [*self.clap.state_dict().items(), *self.criterion.state_dict(prefix="loss.").items()]
        if found := find_non_finite(weights):
            raise NotFiniteError(f"{found} after step {self.step}; {ADVICE}")

        def write(folder: Path) -> None:
            self.clap.save(folder, {key: self.config[key] for key in SAVED if key in self.config})
            if name == "last":
                path = folder / checkpoint.TRAINER
                with name_file(path), path.open("wb") as file:  # of a path, torch.save hides why it cannot be written
                    torch.save(collect_state(self), file)

        checkpoint.write_folder(self.checkpoints / name, write)

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
        """Split -> digests of its clips (clips,), of the splits that the dataset has."""
        loaders = zip(SPLITS, (self.train_loader, self.val_loader, self.test_loader), strict=True)
        return {kind: digest_dataset(loader.dataset) for kind, loader in loaders if loader is not None}

    def test(self, out_path: str | Path) -> dict[str, float]:
        """Evaluate the best checkpoint on the test split; writes metrics.json, cost.json and per-query scores."""
        out_path = Path(out_path)
        self.checkpoints = out_path / "checkpoints"
        metrics = dict(self.best_metrics)
        self.clap.load_state_dict(checkpoint.read_weights(self.checkpoints / "best"))
        if self.test_loader is not None:
            results = self.evaluate(self.test_loader)
            self.write_evaluations(results)
            metrics |= merge_metrics(results)
            self.log_metrics(merge_metrics(results))
        write_json(out_path / METRICS, metrics)
        cost = self.cost()
        write_json(out_path / COST, cost)
        self.log_metrics({f"cost/{name}": value for name, value in cost.items()})
        return metrics

    def batches(self) -> Iterator[Batch]:
        """The rest of this epoch: EpochSampler starts there, of another sampler the first batches are dropped."""
        sampler = self.train_loader.batch_sampler
        if isinstance(sampler, EpochSampler):
            sampler.seek(self.epoch, self.step_in_epoch)
            return iter(self.train_loader)
        return itertools.islice(self.train_loader, self.step_in_epoch, None)

    def finished(self) -> bool:
        patience = self.settings.patience
        waited = patience is not None and self.evaluations_since_best >= patience
        return waited or self.epoch >= self.epochs or self.out_of_steps()

    def out_of_steps(self) -> bool:
        return self.settings.max_steps is not None and self.step >= self.settings.max_steps

    def skips_step(self) -> bool:
        """Whether the scaler of fp16 skips a step with infinite gradients and tries a smaller scale of the loss."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > MIN_LOSS_SCALE

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters of the model, then of the loss."""
        yield from self.clap.named_parameters()
        yield from self.criterion.named_parameters(prefix="loss")

    def stop(self, problem: str, batch: Batch) -> None:
        """NotFiniteError that names the step and clips of a problem."""
        dataset = self.train_loader.dataset
        names = ", ".join(dataset.clips[i].id for i in batch.index.tolist()[:4])
        raise NotFiniteError(
            f"{problem} at step {self.step + 1} (epoch {self.epoch + 1}, batch {self.step_in_epoch}: {names}, ...); "
            f"{ADVICE}"
        )

    def check_problems(self, batch: Batch) -> None:
        """Log clips that cannot be used, each once; too many of them stop the run."""
        dataset = self.train_loader.dataset
        for index, problem in batch.problems.items():
            if (clip_id := dataset.clips[index].id) in self.problems:
                continue
            log.warning("skipped in training: %s", problem)
            self.problems[clip_id] = problem
            count = len(self.problems) + len(dataset.missing)
            if count > dataset.max_bad_fraction * dataset.num_listed:
                raise ValueError(
                    f"{count} of {dataset.num_listed} training clips cannot be used, the last: {problem}; "
                    f"fix them or raise dataset.max_bad_fraction, now {dataset.max_bad_fraction:g} (`python -m clap "
                    "check` names all)"
                )

    def log_skipped_clips(self) -> None:
        """Log how many clips training skipped, and set the number of those it used as a tag."""
        dataset = self.train_loader.dataset
        count = len(dataset.missing) + len(self.problems)
        if count:
            log.warning("%d of %d training clips were skipped, the log names them", count, dataset.num_listed)
        if self.tracker is not None:
            used = {"clips": f"{dataset.num_listed - count} of {dataset.num_listed}"}
            clips = describe_clips(used | {"published_clips": dataset.num_published})
            self.tracker.set_tags({f"{dataset.kind}/{dataset.name}/clips": clips})

    def log_training(self, bar: tqdm) -> None:
        """Mean loss and speed since the last time, to the progress bar and the tracker."""
        seconds = self.train_time.seconds
        loss = torch.stack([loss for loss, _ in self.unlogged]).mean().item()
        speed = sum(clips for _, clips in self.unlogged) / (seconds - self.logged_time)
        self.unlogged, self.logged_time = [], seconds
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} clips/s")
        metrics = {
            "train/loss": loss,
            "train/clips_per_second": speed,
            "train/learning_rate": self.learning_rate,
            "train/logit_scale": self.clap.logit_scale.exp().item(),
        }
        self.log_metrics(metrics)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log_metrics(metrics, step=self.step)

    def make_other_loaders(self) -> dict[str, DataLoader]:
        """Loaders of the splits that evaluators need, after each has checked all that it reads."""
        loaders = {"train": self.train_loader, "val": self.val_loader}
        needs = [kind for kind in find_needs(self.evaluators) if loaders.get(kind) is not None]
        others = {kind: make_evaluation_loader(loaders[kind]) for kind in needs}
        for loader in filter(None, (self.val_loader, self.test_loader)):
            datasets = {kind: other.dataset for kind, other in others.items()}
            check_evaluators(loader.dataset, self.evaluators, datasets)
        return others

    def find_monitors(self) -> list[str]:
        """Full names of the metrics whose mean chooses the best checkpoint; none without validation."""
        monitor, patience = self.settings.monitor, self.settings.patience
        if self.val_loader is None and (monitor or patience):
            raise ValueError(
                f"trainer.monitor={monitor} and trainer.patience={patience} need a validation split, and the dataset "
                "has none; set both to null, or give a dataset with a validation split"
            )
        if self.val_loader is None:
            return []
        dataset = self.val_loader.dataset
        names = list(filter(is_monitor, name_metrics(dataset.kind, dataset.names, self.evaluators)))
        if monitor is not None and monitor not in names:
            raise ValueError(f"trainer.monitor={monitor} is not one of {', '.join(names)}")
        first = names[0].removeprefix(f"{dataset.kind}/{dataset.names[0]}/")
        return [monitor] if monitor else [f"{dataset.kind}/{corpus}/{first}" for corpus in dataset.names]

    def evaluate(self, loader: DataLoader) -> dict[str, Evaluation]:
        return evaluate_split(self.clap, loader, self.evaluators, other_loaders=self.other_loaders)

    def update_best(self, results: Mapping[str, Evaluation]) -> None:
        """Log a validation; keep its results and the checkpoint if no earlier one is better."""
        metrics = merge_metrics(results)
        self.log_metrics(metrics)
        value = sum(metrics[name] for name in self.monitors) / len(self.monitors)
        counts = count_clips(result.protocol for result in results.values())
        clips = ", ".join(dict.fromkeys(find_count(name, counts) for name in self.monitors))
        log.info("epoch %d, step %d: %s %.4f, %s", self.epoch, self.step, " and ".join(self.monitors), value, clips)
        improved = value > self.best_metric
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        if value >= self.best_metric:  # of equals the later one, which has trained longer
            self.best_metric, self.best_metrics = value, metrics
            self.write_evaluations(results)
            self.save("best")

    def write_evaluations(self, results: Mapping[str, Evaluation]) -> None:
        """Write per-query scores and protocols to the run folder, and set the numbers of clips as tags."""
        run_dir = self.checkpoints.parent
        write_results(run_dir / "evaluation", results)
        if self.tracker is not None:
            self.tracker.set_tags(read_counts(run_dir))

    def cost(self) -> dict[str, float]:
        """Time, speed, peak memory and size of the training; docs/training.md describes each number."""
        duration = self.samples_seen / max(self.clips_seen, 1) / self.clap.sample_rate
        return {
            "seconds": round(self.fit_time.seconds, 1),
            "clips_per_second": round(self.clips_seen / max(self.train_time.seconds, 1e-9), 1),
            "steps": self.step,
            **measure_peaks(self.peaks),
            **measure_size(self.clap, duration=duration or self.clap.audio_encoder.window),
        }

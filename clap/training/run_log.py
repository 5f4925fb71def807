"""The log of a training: a header, progress, one line for each epoch or validation, and a table at the end.

Only rank 0 logs, and its numbers are those of all processes.
"""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from clap.classifier import ClapAudioClassifier
from clap.config.values import shell_override
from clap.dataset.clips import ClapDataset
from clap.dataset.loader import EpochSampler
from clap.device import describe_machine
from clap.evaluation.results import Evaluation, label_metric
from clap.log_lines import align_rows, format_duration
from clap.optimizer import describe_learning_rate
from clap.process_group import is_main, world_size
from clap.run_folder import log_summary, show_path
from clap.waveform import AudioHeader

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)
PROGRESS_SECONDS = 60.0  # between two lines of an epoch
SHOWN_METRICS = 3  # of a validation in its line
MOST_HEADERS = 1000  # recordings of which the header states whether they are longer than the window, evenly spaced


class RunLog:
    """Logs what a trainer does; all ranks call it.

    Attributes:
        line_time: of the latest line, by the clock of the system.
    """

    def __init__(self, trainer: "ClapTrainer") -> None:
        self.trainer = trainer
        self.line_time = time.monotonic()

    def log_header(self) -> None:
        """Log what is trained on what, before the first step."""
        if is_main():
            log.info("%s", align_rows(describe_training(self.trainer)))
        self.line_time = time.monotonic()

    def log_progress(self, metrics: Mapping[str, float], bar: tqdm) -> None:
        """Show loss and speed at the progress bar; without one, in a line, at most one in PROGRESS_SECONDS.

        At the end of an epoch `log_epoch` follows.
        """
        text = f"loss {metrics['train/loss']:.3f}, {format_speed(metrics['train/clips_per_second'])}"
        bar.set_postfix_str(text)
        ended = self.trainer.step_in_epoch == len(self.trainer.train_loader) or self.trainer.out_of_steps()
        if bar.disable and not ended and time.monotonic() >= self.line_time + PROGRESS_SECONDS:
            self.log_line(self.trainer.epoch + 1, text)

    def log_epoch(self, results: Mapping[str, Evaluation] | None = None, *, is_best: bool = False) -> None:
        """Log the steps since the last such line, and the validation after them; collective.

        Args:
            results: of the validation; None without one.
        """
        trainer, line = self.trainer, self.trainer.meter.read_line()
        parts = []
        if line:
            parts.append(f"loss {line['loss']:.3f}, learning rate {trainer.learning_rate:.2e}")
            parts.append(f"{format_duration(line['seconds'])}, {format_speed(line['clips_per_second'])}")
        if results is not None:
            parts += [self.describe_validation(results), self.describe_best(is_best)]
        self.log_line(trainer.epoch + bool(trainer.step_in_epoch), " | ".join(parts))

    def describe_validation(self, results: Mapping[str, Evaluation]) -> str:
        """`val text-to-audio mAP@10 0.412 (chance 0.018), ...`: the leading metrics of a validation."""
        values = {name: value for result in results.values() for name, value in result.metrics.items()}
        chance = {name: value for result in results.values() for name, value in result.chance.items()}
        corpora = {result.protocol["dataset"] for result in results.values()}
        texts = []
        for name in self.trainer.validation.choose_shown(results, count=SHOWN_METRICS):
            corpus = f"{name.split('/')[1]} " if len(corpora) > 1 else ""
            level = f" (chance {chance[name]:.3f})" if name in chance else ""
            texts.append(f"{corpus}{label_metric(name)} {values[name]:.3f}{level}")
        return f"{next(iter(results.values())).protocol['split']} {', '.join(texts)}"

    def describe_best(self, is_best: bool) -> str:
        """Whether this validation is the best, else the monitor and the step of the best one."""
        if is_best:
            return "best so far"
        step = self.trainer.kept.best[0][1] if self.trainer.kept.best else 0
        return f"best {self.trainer.validation.best_metric:.3f}" + (f" at step {step}" if step else "")

    def log_line(self, epoch: int, text: str) -> None:
        """Log a line with the position in the training before a text, and the time left after it."""
        trainer, total = self.trainer, self.trainer.settings.num_steps(self.trainer.train_loader)
        left = trainer.meter.fit_time.seconds / max(trainer.step, 1) * (total - trainer.step)
        ending = f" | {format_duration(left)} left" if 0 < trainer.step < total and not trainer.finished() else ""
        if is_main():
            log.info("epoch %d/%d, step %d/%d | %s%s", epoch, trainer.epochs, trainer.step, total, text, ending)
        self.line_time = time.monotonic()

    def log_end(self, metrics: Mapping[str, float], cost: Mapping[str, float]) -> None:
        """Log the results: metrics with their chance level, the best checkpoint, cost, and what to do next."""
        if not is_main():
            return
        trainer, folder = self.trainer, self.trainer.checkpoints.parent
        rows = {
            "best": self.describe_checkpoint(),
            "cost": describe_cost(cost),
            **({"cache": describe_cache(cost)} if "cache_hits" in cost else {}),
            "folder": show_path(folder),
            "next": f"python evaluate.py {shell_override('checkpoint', show_path(folder))}  # dataset=NAME for another",
            "MLflow": describe_tracker(trainer),
        }
        log_summary(folder, metrics, rows)

    def describe_checkpoint(self) -> str:
        """Step and epoch of the best checkpoint."""
        trainer, kept = self.trainer, self.trainer.kept.best
        step = kept[0][1] if kept and trainer.validation.has("val") else trainer.step
        epoch = -(-step // max(len(trainer.train_loader), 1))
        return f"checkpoints/best, of epoch {epoch}, step {step} of {trainer.step}" if step else "checkpoints/best"


def describe_training(trainer: "ClapTrainer") -> dict[str, str]:
    """The header of the log: what is trained, on what, how long, and where the results are."""
    clap, settings, loader = trainer.clap, trainer.settings, trainer.train_loader
    if isinstance(clap, ClapAudioClassifier):
        modules = {"audio encoder": [clap.audio_encoder], "head": [*filter(None, [clap.audio_projection]), clap.head]}
    else:
        projections = [clap.audio_projection, clap.text_projection]
        modules = {"audio encoder": [clap.audio_encoder], "text encoder": [clap.text_encoder]}
        modules["projections"] = projections
    modules |= {"loss": [trainer.criterion]} if any(True for _ in trainer.criterion.parameters()) else {}
    steps = settings.num_steps(loader)
    extent = f"{trainer.epochs} epochs of {len(loader)} steps, {steps} steps in total"
    start = f"; from step {trainer.step} on" if trainer.step else ""
    return {
        "run": getattr(trainer.tracker, "run_name", None) or type(clap).__name__,
        "device": f"{describe_machine(clap.device)}, {settings.precision}",
        "parameters": count_parameters(clap),
        **{f"  {name}": describe_part(parts, trainer) for name, parts in modules.items()},
        "data": describe_data(trainer),
        "window": describe_window(trainer),
        **({"augmentation": text} if (text := clap.augmentation.describe()) else {}),
        **trainer.frozen.describe(),
        "training": f"{extent}, {describe_batch(loader)}{start}",
        "learning rate": describe_learning_rate(trainer.optimizer, trainer.scheduler),
        "folder": show_path(trainer.checkpoints.parent),
        "MLflow": describe_tracker(trainer),
    }


def describe_part(parts: list[nn.Module], trainer: "ClapTrainer") -> str:
    """Class and parameters of a part of the model, which may be two modules of a class."""
    names = list(dict.fromkeys(type(part).__name__ for part in parts))
    start = trainer.settings.unfreeze_at
    later = f", trained from step {start} on" if start and not trainable(nn.ModuleList(parts)) else ""
    return f"{count_parameters(nn.ModuleList(parts))}{later}, {' and '.join(names)}"


def count_parameters(module: nn.Module) -> str:
    """`4.61 M, all trainable`, `124.44 M, frozen`, or the trainable and frozen ones."""
    total, trained = sum(p.numel() for p in module.parameters()), trainable(module)
    state = f"{trained / 1e6:.2f} M trainable, {(total - trained) / 1e6:.2f} M frozen"
    return f"{total / 1e6:.2f} M, {'all trainable' if trained == total else state if trained else 'frozen'}"


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def describe_data(trainer: "ClapTrainer") -> str:
    """Name of the dataset, and clips of each split."""
    datasets = {kind: loader.dataset for kind, loader in trainer.loaders.items() if loader is not None}
    counts = [f"{len(getattr(dataset, 'clips', dataset))} {kind}" for kind, dataset in datasets.items()]
    evaluated = trainer.validation.datasets
    others = [f"{len(dataset.clips)} {name}" for name, dataset in evaluated.items() if name not in datasets]
    also = f"; evaluated too: {', '.join(others)} clips" if others else ""
    return f"{getattr(datasets['train'], 'name', 'dataset')}, {', '.join(counts)} clips{also}"


def describe_window(trainer: "ClapTrainer") -> str:
    """The window, what the encoder sees of a longer clip, and how many training clips are longer."""
    encoder, dataset = trainer.clap.audio_encoder, trainer.train_loader.dataset
    text = encoder.describe_window()
    if not isinstance(dataset, ClapDataset):
        return text
    chosen = range(0, len(dataset.clips), -(-len(dataset.clips) // MOST_HEADERS))
    durations = [header.duration for header in dataset.read_headers(chosen) if isinstance(header, AudioHeader)]
    if not durations:
        return text
    longer, whose = sum(duration > encoder.window for duration in durations), len(durations)
    checked = "training clips" if whose == len(dataset.clips) else "checked training clips"
    return f"{text}; {longer} of {whose} {checked} are longer"


def describe_batch(loader: DataLoader) -> str:
    """`batch 32 = 2 x 16 clips`: the global batch, and that of each process."""
    size, several = getattr(loader.batch_sampler, "batch_size", None), world_size()
    if size is None:
        return "batches of the loader"
    size *= 1 if isinstance(loader.batch_sampler, EpochSampler) else several
    return f"batch {size}{f' = {several} x {size // several}' if several > 1 else ''} clips"


def describe_tracker(trainer: "ClapTrainer") -> str:
    return "no tracker" if trainer.tracker is None else trainer.tracker.url_hint


def describe_cost(cost: Mapping[str, float]) -> str:
    """Time, speed, memory and size of a training in one line."""
    memory = {"peak memory": "peak_memory_bytes", "on the GPU": "peak_gpu_memory_bytes"}
    return ", ".join(
        [
            f"{format_duration(cost['seconds'])} of training and validation",
            format_speed(cost["clips_per_second"]),
            *(f"{name} {cost[key] / 1e9:.2f} GB" for name, key in memory.items() if key in cost),
            f"{cost['parameters'] / 1e6:.2f} M parameters",
            f"{cost['gigaflops_per_clip']:g} GFLOPs a clip",
        ]
    )


def describe_cache(cost: Mapping[str, float]) -> str:
    """Share of the training clips that a cache had, and what was read from it."""
    loads = cost["cache_hits"] + cost["cache_misses"]
    share, size = cost["cache_hits"] / loads, cost["cache_bytes"] / 1e9
    return f"{share:.1%} of {loads} training clips read from it, {size:.2f} GB; {cost['cache_misses']} decoded"


def format_speed(clips_per_second: float) -> str:
    return f"{clips_per_second:.{0 if clips_per_second >= 10 else 1}f} clips/s"

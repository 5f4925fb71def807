"""The digests of what a run trains on, `train_clips.npy` of its checkpoints, made while it trains."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from clap import checkpoint
from clap.atomic import atomic_path
from clap.dataset.clips import ClapDataset
from clap.dataset.leaks import UNKNOWN, digest_training_clips
from clap.dataset.loader import START_METHOD
from clap.dataset.sources import find_recordings, find_sources
from clap.evaluation.leak_check import mark_leaks, read_digests, read_train_clips
from clap.process_group import is_main

if TYPE_CHECKING:  # the trainer imports this module
    from clap.training.trainer import ClapTrainer

log = logging.getLogger(__name__)
FEW = 5000  # clips that are digested before the first step, in half a second from a local disk


class TrainClips:
    """Writes train_clips.npy into a run folder, once, on rank 0, and links it into each checkpoint.

    Of many clips a process of its own writes it while the run trains, so that neither the start nor a checkpoint waits
    for it. A checkpoint that is written before has no such file until training ends, which waits for it.

    Args:
        config: the composed config of the run. The training clips of `init_from`, and of `audio_encoder.pretrained` if
            it is a checkpoint that records them, are those of the run too.
    """

    def __init__(self, dataset: Dataset, config: Mapping[str, Any]) -> None:
        self.dataset, self.init_from, self.parent = dataset, config.get("init_from"), os.getpid()
        self.pretrained = (config.get("audio_encoder") or {}).get("pretrained")
        self.file: Path | None = None

    @contextmanager
    def recorded(self, run_dir: Path) -> Iterator[None]:
        """Write the file while the body trains; all checkpoints have it at the end."""
        if not is_main() or not isinstance(self.dataset, ClapDataset):
            yield
            return
        self.file, process = run_dir / checkpoint.TRAIN_CLIPS, None
        self.file.unlink(missing_ok=True)
        folders = [run_dir / "checkpoints" / name for name in ("last", "best")]  # of this run, if it is resumed
        before = [file for folder in folders if is_complete(file := folder / checkpoint.TRAIN_CLIPS)]
        if before:
            checkpoint.link_file(before[0], self.file)
        elif len(self.dataset.clips) <= FEW:
            self.write()
        else:
            process = multiprocessing.get_context(START_METHOD).Process(target=self.write_alone, daemon=True)
            process.start()
        try:
            yield
            if process is not None:
                self.wait_for(process)
            for config in (run_dir / "checkpoints").glob(f"*/{checkpoint.CONFIG}"):
                self.link_into(config.parent)
        finally:
            if process is not None:
                process.kill()
                process.join()

    def write(self) -> None:
        """Write the digests of the dataset and of the clips of the initial weights."""
        digests = digest_training_clips(self.dataset, is_stopped=self.is_orphan)
        for source in filter(lambda source: isinstance(source, str), (self.init_from, self.pretrained)):
            before = read_train_clips(source)
            unknown = np.array([UNKNOWN] if source == self.init_from else [], np.uint64)
            digests = np.union1d(digests, unknown if before is None else before)
        if not self.is_orphan():
            with atomic_path(self.file) as partial, partial.open("wb") as file:
                np.save(file, digests)

    def write_alone(self) -> None:
        """`write`, in a process of its own, which ends with the trainer."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.nice(10)  # the workers that load clips come first
        self.write()

    def is_orphan(self) -> bool:
        """Whether this is the process of its own, and the trainer has ended."""
        return self.parent not in (os.getpid(), os.getppid())

    def wait_for(self, process: multiprocessing.Process) -> None:
        if process.is_alive():
            log.info("waits until all %d training clips have been read for %s", len(self.dataset.clips), self.file.name)
        process.join()
        if process.exitcode:
            log.warning("%s is missing, its process ended with %d; leaks are not found", self.file, process.exitcode)

    def link_into(self, folder: Path) -> None:
        """Link the file into the folder of a checkpoint that has none, as soon as it is written."""
        target = folder / checkpoint.TRAIN_CLIPS
        if self.file is not None and self.file.is_file() and not target.exists():
            checkpoint.link_file(self.file, target)


def is_complete(file: Path) -> bool:
    """Whether a checkpoint has the file; a damaged one is deleted, to be written again."""
    try:
        return file.is_file() and read_digests(file) is not None
    except ValueError as error:
        log.warning("%s; it is written again", error)
        file.unlink()
        return False


def check_test_recordings(trainer: "ClapTrainer") -> None:
    """Compare the recordings of test clips with those of training clips; their samples are compared by the final test.

    Raises:
        ValueError: some are the same, and `trainer.allow_leaks` is false.
    """
    trained = trainer.train_loader.dataset
    if trainer.settings.allow_leaks or not isinstance(trained, ClapDataset):
        return
    for dataset in list_tested(trainer):
        recordings = set(filter(None, find_sources(dataset.clips)))
        leaked = find_recordings(trained.clips, recordings)
        if len(leaked):
            names = ", ".join(trained.clips[i].id for i in leaked[:3].tolist())
            raise ValueError(
                f"{len(leaked)} training clips are cut from recordings of the test split of {dataset.name}, such as "
                f"{names}; skip them (dataset.exclude_evaluated=true, dataset.exclude), change the splits, or set "
                "trainer.allow_leaks=true, and the protocol states their number"
            )


def list_tested(trainer: "ClapTrainer") -> list[ClapDataset]:
    """The test splits of a run."""
    return [found.loaders["test"].dataset for found in trainer.validation.sets if "test" in found.loaders]


def mark_test_clips(trainer: "ClapTrainer") -> None:
    """Set how many clips of the test splits the training has used, for their protocols, and warn of any."""
    file = trainer.checkpoints / "best" / checkpoint.TRAIN_CLIPS
    if is_main() and file.is_file():
        trained = read_digests(file)
        for problem in [problem for dataset in list_tested(trainer) for problem in mark_leaks(dataset, trained)]:
            log.warning("%s were in the training set; the protocol states their number", problem)

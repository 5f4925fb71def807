"""Evaluated clips that a model was trained on: refused unless they are allowed, and stated in the protocol."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from clap import checkpoint
from clap.dataset.clips import ClapDataset
from clap.dataset.leaks import UNKNOWN, find_leaks
from clap.published.hub import fetch_own

log = logging.getLogger(__name__)


def read_train_clips(source: str | Path) -> np.ndarray | None:
    """The digests of what a checkpoint was trained on, sorted uint64; None if it records none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        if (own := fetch_own(source)) is None:
            return None
        return read_digests(checkpoint.find_best(own) / checkpoint.TRAIN_CLIPS)
    except FileNotFoundError:
        return None


def read_digests(path: Path) -> np.ndarray:
    """The digests of a file, sorted uint64.

    Raises:
        ValueError: the file is damaged. FileNotFoundError: it is missing.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged or truncated ({error}); restore it, or delete it to evaluate") from None


def check_leaks(source: str | Path, datasets: Iterable[ClapDataset], *, split: str, allow: bool) -> None:
    """Compare evaluated clips with what a checkpoint was trained on, and mark each dataset (see `mark_leaks`).

    Args:
        split: that is evaluated, `train` on purpose; datasets of other splits, as a linear probe reads, may be trained.

    Raises:
        ValueError: the checkpoint was trained on clips of another split, which is not allowed.
    """
    trained = read_train_clips(source)
    if trained is None:
        log.info("%s does not record its training clips: leaks cannot be found", source)
        return
    for dataset in [dataset for dataset in datasets if dataset.kind == split]:
        for problem in mark_leaks(dataset, trained):
            if not allow and split != "train":
                raise ValueError(
                    f"{problem} were in the training set of {source}; evaluate another split, fold or dataset, or set "
                    "allow_leaks=true, and the protocol states their number"
                )
            log.warning("%s were in the training set; the protocol states their number", problem)


def mark_leaks(dataset: ClapDataset, trained: np.ndarray) -> list[str]:
    """Set the number of training clips in each corpus of an evaluated dataset; a description of those with some.

    Args:
        trained: digests of training clips.
    """
    found = []
    for part, _ in dataset.by_corpus:
        leaks = find_leaks(part, trained)
        part.num_leaked = len(leaks.clips)
        if not part.num_leaked and UNKNOWN in trained:
            part.num_leaked = None
        if part.num_leaked:
            found.append(
                f"{part.num_leaked} of {len(part.clips)} {part.kind} clips of {part.name}, "
                f"{leaks.describe(part.clips)},"
            )
    return found

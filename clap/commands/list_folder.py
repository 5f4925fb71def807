"""`python -m clap list`: write the index of a folder of labelled recordings, a subfolder for each class."""

import argparse
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clap.atomic import write_atomic
from clap.commands.inputs import find_files
from clap.config.values import SPLITS, shell_override
from clap.corpus import Clip
from clap.dataset.folds import choose_val_recordings
from clap.dataset.sources import infer_sources
from clap.text_table import tabulate, to_csv

COLUMNS = ("path", "label", "split", "recording")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m clap list`."""
    parser.add_argument(
        "folder", type=Path, help="folder with a subfolder for each class, or train/, val/ and test/ with these"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="CSV to write, a new file")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="of each class (default: %(default)s)")
    parser.add_argument("--test-fraction", type=float, default=0.2, help="of each class (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the index, print its size and the command that trains on it."""
    if args.output.exists():
        raise FileExistsError(f"--output {args.output} exists; give a new file, or delete this one")
    fractions = {"test": args.test_fraction, "val": args.val_fraction}
    if min(fractions.values()) < 0 or not sum(fractions.values()) < 1:
        raise ValueError(
            f"--val-fraction {args.val_fraction:g} and --test-fraction {args.test_fraction:g} must be 0 or more, and "
            "together below 1; the remaining clips are the training split"
        )
    rows = list_folder(args.folder, fractions, seed=args.seed)
    columns = [name for name in COLUMNS if any(row[name] for row in rows)]
    write_atomic(args.output, to_csv(tabulate(rows, columns)).encode())
    counts = Counter(row["split"] for row in rows)
    sizes = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    print(f"{args.output}: {len(rows)} clips of {len({row['label'] for row in rows})} classes: {sizes}")
    data = shell_override("dataset.root", args.folder), shell_override("dataset.metadata", args.output)
    print("python train.py dataset=csv", *data, shlex.quote("evaluation=[zero_shot,linear_probe]"))


def list_folder(folder: Path, fractions: Mapping[str, float], *, seed: int = 0) -> list[dict[str, str]]:
    """The rows of an index, {column: text}, of the recordings below a folder, in order of their names.

    The label is the name of the first subfolder, with spaces for underscores. Subfolders named train, val and test are
    splits, and the label is the name of the next one. Else each class is divided at random, such that clips whose names
    say that they are cut from one recording (Freesound, YouTube, ESC-50, UrbanSound8K) stay in one split.

    Args:
        fractions: split -> share of the clips of each class, at least one clip if it has enough recordings; train has
            the remaining ones, at least one recording.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: a recording is not in the folder of a class.
    """
    paths = sorted(Path(os.path.relpath(name, folder)) for name in find_files([str(folder)]))
    has_splits = all(path.parts[0] in SPLITS for path in paths)
    depth = 2 if has_splits else 1
    if outside := [path for path in paths if len(path.parts) <= depth]:
        goal = folder / ("SPLIT/CLASS" if has_splits else "CLASS") / outside[0].name
        raise ValueError(f"{folder / outside[0]} is not in the folder of a class; move it to {goal}")
    labels = [path.parts[depth - 1].replace("_", " ") for path in paths]
    recordings = infer_sources([Clip(path.as_posix(), (), path) for path in paths])
    if has_splits:
        splits = [path.parts[0] for path in paths]
    else:
        splits = divide(
            labels, [own or str(path) for own, path in zip(recordings, paths, strict=True)], fractions, seed
        )
    return [
        {"path": path.as_posix(), "label": label, "split": split, "recording": recording or ""}
        for path, label, split, recording in zip(paths, labels, splits, recordings, strict=True)
    ]


def divide(labels: Sequence[str], recordings: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """A split for each clip, such that each class has about its share in each split and a recording is in one."""
    sizes: dict[str, Counter] = defaultdict(Counter)  # class -> recording -> clips
    for label, recording in zip(labels, recordings, strict=True):
        sizes[label][recording] += 1
    held_out: dict[str, set[str]] = {split: set() for split in fractions}
    for number, label in enumerate(sorted(sizes)):
        rest, total = sizes[label], sizes[label].total()
        order = np.random.default_rng([seed, number]).permutation(sorted(rest)).tolist()
        for split, fraction in fractions.items():
            names = [name for name in order if name in rest]
            held_out[split] |= choose_val_recordings(rest, names, fraction * total / rest.total(), held_out[split])
            rest = Counter({name: count for name, count in rest.items() if name not in held_out[split]})
    return [next((split for split in held_out if name in held_out[split]), "train") for name in recordings]

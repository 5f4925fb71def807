"""python -m clap shard: write a corpus as tars in webdataset's layout, split by split."""

import argparse
import os
import re
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from clap.commands.check import compose_datasets
from clap.config.values import shell_override
from clap.corpus import SPLITS, Part
from clap.dataset.clip_table import JoinedClips
from clap.dataset.dataset_settings import DatasetSettings, read_dataset_settings
from clap.dataset.held_out import select_training_clips
from clap.dataset.registry import open_corpus
from clap.dataset.shard_writer import ShardOptions, write_split
from clap.dataset.shards import Shards

GIGABYTE = 1e9
OVERRIDE = re.compile(r"[+~]*dataset(\.\w+)*=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m clap shard`."""
    parser.add_argument(
        "overrides", nargs="+", help="dataset overrides as for train.py: dataset=esc50 dataset.root=ESC-50"
    )
    parser.add_argument("folder", type=Path, help="target, in which each split gets a folder; a killed command resumes")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: %(default)s")
    parser.add_argument("--max-clips", type=int, default=1000, help="clips of a shard (default: %(default)s)")
    parser.add_argument("--max-gigabytes", type=float, default=1.0, help="size of a shard (default: %(default)s)")
    parser.add_argument("--format", choices=("flac",), help="encode recordings as 16-bit mono (default: copy them)")
    parser.add_argument("--sample-rate", type=int, help="Hz, of --format flac (default: copy recordings)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (default: one per core)")


def run(args: argparse.Namespace) -> None:
    """Write the shards and their index, print their number, and the command that trains on them."""
    if (args.format is None) != (args.sample_rate is None):
        raise ValueError("--format flac and --sample-rate belong together; give both, or none to copy recordings")
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} is not positive; set it to 1 or more")
    if OVERRIDE.match(str(args.folder)):
        raise ValueError(f"{args.folder} is an override where the folder is expected; add the folder as last argument")
    settings = compose_datasets(args.overrides)[0]
    corpus = open_corpus(settings)
    if len(corpus.parts) > 1:
        raise ValueError(f"{corpus.name} is a mixture; write the shards of each corpus, and mix these")
    (part,) = corpus.parts
    limits = read_dataset_settings(settings)
    options = ShardOptions(args.max_clips, args.max_gigabytes * GIGABYTE, args.sample_rate, limits.max_bad_fraction)
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.folder / "shards.lock", timeout=0):
            for split in args.splits:
                if clips := list_clips(part, split, limits):
                    folder = args.folder / split
                    index = write_split(
                        part.corpus, clips, folder, options, shuffle=split == "train", workers=args.workers
                    )
                    print(describe_split(folder, index["shards"]))
            found = Shards(args.folder, shard_cache=args.folder)
            for split in args.splits:
                found.clips(split)  # makes the index of each tar
    except Timeout:
        raise ValueError(f"{args.folder}: another command writes shards here; wait until it has ended") from None
    print("python train.py dataset=shards", shell_override("dataset.root", args.folder))


def list_clips(part: Part, split: str, settings: DatasetSettings) -> JoinedClips:
    """The clips of a split that a training or an evaluation uses."""
    clips = JoinedClips(part.list_clips(split))
    if split == "train" and len(clips):
        (clips,) = select_training_clips([part], [clips], settings)
    return clips.select(np.arange(len(clips))[: settings.max_clips])


def describe_split(folder: Path, shards: dict[str, dict]) -> str:
    """Numbers of shards and clips, and their size."""
    clips, skipped, size = (sum(entry[key] for entry in shards.values()) for key in ("clips", "skipped", "bytes"))
    lost = f", {skipped} skipped" if skipped else ""
    return f"{folder}: {clips} clips in {len(shards)} shards, {size / GIGABYTE:.3g} GB{lost}"

"""python -m clap check: find faults in the clips of a corpus, and overlap of its splits with evaluation data."""

import argparse
import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from clap.check.limits import OVERLAPS, Limits
from clap.config import find_absent
from clap.config.compose import compose_config
from clap.dataset.evaluation_options import plan_evaluation_datasets

LIMITS = {
    "shortest": "seconds; shorter clips are reported",
    "longest": "seconds; longer clips are reported",
    "silence": "dBFS; clips with no louder 0.1 s are reported",
    "clipping": "share of samples at full scale; clips with more are reported",
    "similarity": "Jaccard index of the words of two captions from which they are near",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m clap check`."""
    parser.add_argument(
        "overrides", nargs="+", help="dataset overrides as for train.py: dataset=esc50 dataset.root=ESC-50"
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="OVERRIDES",
        help='corpus whose val and test splits must not overlap with training: "dataset=esc50 dataset.root=ESC-50"; '
        "repeatable",
    )
    parser.add_argument("--output", type=Path, help="folder of the report (default: outputs/check/NAME)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="decoding threads (default: one per core)")
    parser.add_argument("--no-audio", action="store_true", help="check ids and captions only")
    parser.add_argument(
        "--block",
        nargs="+",
        choices=tuple(OVERLAPS),
        default=["recording", "audio"],
        help="kinds of overlap that put a training clip on the block list (default: recording audio)",
    )
    for option in fields(Limits):
        text = f"{LIMITS[option.name]} (default: {option.default})"
        parser.add_argument(f"--{option.name}", type=float, default=option.default, help=text)


def run(args: argparse.Namespace) -> None:
    """Check a corpus, print the report, and write it with its figure, all findings and the block list."""
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} is not positive; set it to 1 or more")
    limits = Limits(**{option.name: getattr(args, option.name) for option in fields(Limits)})
    datasets = [compose_datasets(lines) for lines in (args.overrides, *map(shlex.split, args.against))]
    own, *against = itertools.chain(*datasets)

    from clap.check import outputs, survey  # torch and matplotlib; a wrong option is reported without them

    report = survey.check_corpus(own, against, limits=limits, workers=0 if args.no_audio else args.workers)
    folder = args.output or Path("outputs") / "check" / report.name
    num_blocked = outputs.write_outputs(report, folder, block=args.block)
    blocked = ", ".join(
        [f"{num_blocked} clips", *(f"{kind} not compared" for kind in report.find_uncompared(args.block))]
    )
    print(f"{report.to_markdown()}\n{folder}: report.md, report.png, findings.csv, exclude.txt ({blocked})")
    if num_blocked:
        print(f"to exclude these clips from training: dataset.exclude={folder / 'exclude.txt'}")


def compose_datasets(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The `dataset` node of the config that train.py composes, and a node for each evaluation dataset.

    Raises:
        ValueError: an override is invalid, or a required key is missing.
    """
    config = compose_config(list(overrides))
    if absent := find_absent(config["dataset"], "dataset."):
        raise ValueError(f"{absent} in {' '.join(overrides)}")
    return [config["dataset"], *(plan.to_node() for plan in plan_evaluation_datasets(config).values())]

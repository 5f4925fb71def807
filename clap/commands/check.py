"""python -m clap check: looks at every clip of a corpus and compares its splits with each other and with other sets."""

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from clap.check.limits import OVERLAPS, Limits
from clap.config import find_absent
from clap.config.compose import compose_config

LIMITS = {
    "shortest": "seconds below which a clip is too short",
    "longest": "seconds above which a clip is too long",
    "silence": "dBFS that no 0.1 s of a silent clip reaches",
    "clipping": "share of samples at full scale above which a clip is clipped",
    "similarity": "words in both of two near captions, divided by words in either",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap check`."""
    parser.add_argument("overrides", nargs="+", help="as for train.py: dataset=esc50 dataset.root=ESC-50")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="OVERRIDES",
        help='a set whose val and test splits training must not meet: "dataset=esc50 dataset.root=ESC-50"; repeatable',
    )
    parser.add_argument("--output", type=Path, help="folder of the report (default: outputs/check/NAME)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that decode (default: one a core)")
    parser.add_argument("--no-audio", action="store_true", help="look at ids and captions alone")
    parser.add_argument(
        "--block",
        nargs="+",
        choices=tuple(OVERLAPS),
        default=["recording", "audio"],
        help="what puts a training clip on the block list if it shares it (default: recording audio)",
    )
    for option in fields(Limits):
        text = f"{LIMITS[option.name]} (default: {option.default})"
        parser.add_argument(f"--{option.name}", type=float, default=option.default, help=text)


def run(args: argparse.Namespace) -> None:
    """Check, print the report, and write it with its picture, all findings and the block list."""
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} must be 1 or more")
    limits = Limits(**{option.name: getattr(args, option.name) for option in fields(Limits)})
    own, *against = (compose_dataset(lines) for lines in (args.overrides, *map(shlex.split, args.against)))

    from clap.check import outputs, survey  # torch and matplotlib; a wrong option is reported without them

    report = survey.check_corpus(own, against, limits=limits, workers=0 if args.no_audio else args.workers)
    folder = args.output or Path("outputs") / "check" / report.name
    num_blocked = outputs.write_outputs(report, folder, block=args.block)
    print(f"{report.to_markdown()}\n{folder}: report.md, report.png, findings.csv, exclude.txt ({num_blocked} clips)")
    if num_blocked:
        print(f"to train without them: dataset.exclude={folder / 'exclude.txt'}")


def compose_dataset(overrides: Sequence[str]) -> dict[str, Any]:
    """The `dataset` node of the config that train.py would compose.

    Raises:
        ValueError: an override is wrong, or a key is not given.
    """
    settings = compose_config(list(overrides))["dataset"]
    if absent := find_absent(settings, "dataset."):
        raise ValueError(f"{absent} in {' '.join(overrides)}")
    return settings

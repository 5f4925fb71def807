"""python -m clap plan: the jobs of a study with estimated hours, and what they would download."""

import argparse
import os
from typing import TYPE_CHECKING

from clap.study.plan import make_plan

if TYPE_CHECKING:
    pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap plan`."""
    parser.add_argument("study", help="a yaml of conf/experiment that declares a study: encoder_ablation")
    parser.add_argument("overrides", nargs="*", help="as for train.py -m: trainer.max_epochs=2 seed=0,1")


def run(args: argparse.Namespace) -> None:
    """Print the plan of a study."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # the libraries read it when they are imported, which is later
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(make_plan(args.study, args.overrides).markdown())
    if load > cores / 2:
        print(
            f"other programs keep {load:.1f} of {cores} cores busy: timed and counted jobs will be faster without them"
        )

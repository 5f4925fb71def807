"""`python -m clap plan`: list the jobs of a study, their estimated hours and their downloads."""

import argparse
import os

from clap.study.plan import make_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap plan`."""
    parser.add_argument("study", help="name of a study in conf/experiment: encoder_ablation")
    parser.add_argument("overrides", nargs="*", help="overrides as for train.py -m: trainer.max_epochs=2 seed=0,1")


def run(args: argparse.Namespace) -> None:
    """Print the plan of a study."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # the libraries read it when they are imported, in make_plan
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(make_plan(args.study, args.overrides).markdown())
    if load > cores / 2:
        print(f"other processes keep {load:.1f} of {cores} cores busy: timed and counted jobs run faster without them")

"""python -m clap upload: send to MLflow what a run could not send."""

import argparse
from pathlib import Path

from clap.tracking.upload import upload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap upload`."""
    parser.add_argument("run_dir", type=Path, help="folder of a run, or of a sweep with its jobs")
    parser.add_argument("--uri", help="store, outputs/mlflow.db or http://HOST:PORT (default: the store of the run)")


def run(args: argparse.Namespace) -> None:
    """Send a run, or a sweep with its jobs, and print what was sent."""
    for line in upload(args.run_dir, uri=args.uri):
        print(line)

"""python -m clap register: put a model into MLflow's registry, from where it can be served."""

import argparse
from pathlib import Path

from clap.tracking.register import choose_store, register
from clap.tracking.store import (
    DEFAULT_STORE,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap register`."""
    parser.add_argument("checkpoint", type=Path, help="a run's folder, for its best checkpoint, or a checkpoint's")
    parser.add_argument("--name", default="clap", help="of the registered model (default: %(default)s)")
    parser.add_argument("--uri", help=f"outputs/mlflow.db or http://HOST:PORT (default: the run's, or {DEFAULT_STORE})")


def run(args: argparse.Namespace) -> None:
    """Register a checkpoint, and say what it is now and how to serve it."""
    uri = choose_store(args.checkpoint, args.uri)
    found = register(args.checkpoint, name=args.name, uri=uri)
    belongs = f"of run {found.run_id}" if found.run_id else "of no run"
    print(f"{found.name} version {found.version}, {belongs}, in {uri}; to serve it:")
    print(f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/{found.name}/{found.version} --env-manager local")

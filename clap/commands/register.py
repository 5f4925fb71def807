"""python -m clap register: register a model in MLflow, ready to be served."""

import argparse
import shlex
from pathlib import Path

from clap.tracking.register import choose_store, register
from clap.tracking.store import DEFAULT_STORE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap register`."""
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint, or of a run for its best checkpoint")
    parser.add_argument("--name", default="clap", help="name of the registered model (default: %(default)s)")
    parser.add_argument(
        "--uri", help=f"store, a path or http://HOST:PORT (default: the store of the run, or {DEFAULT_STORE})"
    )


def run(args: argparse.Namespace) -> None:
    """Register a checkpoint, and print its version and the command that serves it."""
    uri = choose_store(args.checkpoint, args.uri)
    found = register(args.checkpoint, name=args.name, uri=uri)
    run = f"run {found.run_id}" if found.run_id else "without a run"
    print(f"{found.name} version {found.version}, {run}, in {uri}; to serve it:")
    store = " ".join(f"{name}={shlex.quote(uri)}" for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"))
    model = shlex.quote(f"models:/{found.name}/{found.version}")
    print(f"{store} mlflow models serve -m {model} --env-manager local")

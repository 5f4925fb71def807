"""`python -m clap push_to_hub RUN --repo OWNER/NAME --licence ID`: push a model with its card to the hub."""

import argparse
from pathlib import Path

import clap
from clap import checkpoint
from clap.release.repository import LICENCES, check_licence, check_repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap push_to_hub`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder for its best checkpoint, or a checkpoint")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository; created if it does not exist")
    parser.add_argument(
        "--licence", "--license", metavar="ID", help=f"of the weights, as on the hub: {', '.join(LICENCES)}"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write the files to a folder, and push nothing")


def run(args: argparse.Namespace) -> None:
    """Push a checkpoint, or write what would be pushed, and print where it is."""
    check_repository(args.repo)
    check_licence(args.licence)
    checkpoint.find_file(checkpoint.find_best(args.run), checkpoint.CONFIG)
    if args.dry_run is not None:
        facts = clap.write_release(args.run, args.dry_run, repo=args.repo, licence=args.licence)  # imports torch
        print(f"{args.dry_run}: {', '.join(sorted(path.name for path in args.dry_run.iterdir()))}; nothing is pushed")
        print(f"metrics in the model card: {len(facts.results)}")
        return
    address = clap.push_to_hub(args.run, args.repo, licence=args.licence, private=args.private)
    print(f"{address}: pushed; Clap.from_ckpt({args.repo!r}) loads it")

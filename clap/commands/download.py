"""python -m clap download: a corpus from its publisher, as far as it is not there yet."""

import argparse
import functools
import os
import sys
from pathlib import Path

from clap.config.compose import compose_yamls
from clap.corpus import SPLITS, plain_name
from clap.dataset.registry import find_corpus
from clap.download.addresses import ADDRESSES, check_downloadable, list_downloads, resolve_addresses
from clap.download.run import download_corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap download`."""
    parser.add_argument("corpus", help=", ".join(list_downloads()))
    parser.add_argument(
        "overrides",
        nargs="*",
        help="other addresses or options than those of clap/download/CORPUS.yaml: server=https://mirror/clotho",
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that gets a folder for the corpus")
    parser.add_argument("--splits", nargs="+", default=[], help="fetch only these (default: train val test)")
    parser.add_argument("--workers", type=int, default=4, help="connections at a time (default: 4)")
    parser.add_argument("--again", action="store_true", help="ask again for clips that are gone")


def run(args: argparse.Namespace) -> None:
    """Fetch, print what is there and what is missing; the exit status is 1 if another attempt may bring more."""
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} must be 1 or more")
    name, splits = plain_name(args.corpus), [split for split in args.splits if "=" not in split]
    check_downloadable(name)
    overrides = [*args.overrides, *(text for text in args.splits if "=" in text)]
    settings = resolve_addresses(compose_yamls(overrides, folder=ADDRESSES, name=name))
    try:
        result = download_corpus(
            name,
            args.root,
            settings,
            functools.partial(find_corpus, name),
            splits=splits or SPLITS,
            workers=args.workers,
            again=args.again,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(130)  # a large archive that is being unpacked would be waited for; a kill does no harm
    print(result)
    sys.exit(bool(result.failures))

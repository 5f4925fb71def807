"""python -m clap download: download the missing files of a corpus from its publisher."""

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
    """Arguments of `python -m clap download`."""
    parser.add_argument("corpus", help=", ".join(list_downloads()))
    parser.add_argument(
        "overrides",
        nargs="*",
        help="overrides of clap/download/CORPUS.yaml: server=https://mirror/clotho",
    )
    parser.add_argument("--root", type=Path, required=True, help="folder in which the corpus gets a subfolder")
    parser.add_argument("--splits", nargs="+", default=[], help="splits to download (default: train val test)")
    parser.add_argument("--workers", type=int, default=4, help="number of parallel connections (default: 4)")
    parser.add_argument("--again", action="store_true", help="request clips again that are recorded as unavailable")


def run(args: argparse.Namespace) -> None:
    """Download and print present and missing clips; the exit status is 1 if another attempt may succeed."""
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} is not positive; set it to 1 or more")
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
        print("interrupted; run the same command again to resume", file=sys.stderr, flush=True)
        os._exit(130)  # without waiting for an archive that is being unpacked; a kill is safe
    print(result)
    sys.exit(bool(result.failures))

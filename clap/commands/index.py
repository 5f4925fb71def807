"""`python -m clap index FOLDER --checkpoint PATH --output DIR`: embeddings of a folder of recordings, for search."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from clap.commands import inputs
from clap.sound_index.record import RECORD, IndexRecord, check_folder
from clap.sound_index.vectors import ERRORS, TABLE, read_errors

MOST_NAMED = 10  # unreadable files that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap index`."""
    parser.add_argument("folder", type=Path, help="recordings, also in subfolders")
    parser.add_argument(
        "--checkpoint", metavar="PATH_OR_NAME", help=f"{inputs.CHECKPOINT_HELP} (default: the one of an existing index)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the index; an existing one is brought up to date"
    )
    parser.add_argument(
        "--hop", type=float, metavar="S", help="seconds between windows of long files (default: half a window)"
    )
    parser.add_argument(
        "--window", type=float, metavar="S", help="seconds of a window (default, and at most: the model's window)"
    )
    parser.add_argument("--rebuild", action="store_true", help="discard an index of another model or other windows")
    parser.add_argument("--retry", action="store_true", help="read unreadable files again, even if they are unchanged")
    inputs.add_device_arguments(parser)
    parser.set_defaults(windows=None)


def run(args: argparse.Namespace) -> None:
    """Index the folder, and print what has changed."""
    check_arguments(args)
    embedder = inputs.load_embedder(args)
    options = {"window": args.window, "hop": args.hop, "rebuild": args.rebuild, "retry": args.retry}
    try:
        summary = embedder.index_folder(args.folder, args.output, **options)
    except KeyboardInterrupt:
        print(
            f"\nstopped; what is done is kept in {args.output}; resume with\n  {resume_command(args)}", file=sys.stderr
        )
        raise
    counts = ", ".join(f"{getattr(summary, name)} {name}" for name in ("added", "changed", "deleted", "unchanged"))
    files = summary.added + summary.changed + summary.unchanged
    print(f"{args.output}: {files} files, {summary.windows} windows ({counts})")
    if summary.failed:
        for entry in read_errors(args.output)[:MOST_NAMED]:
            print(f"not read: {entry['error']}", file=sys.stderr)
        print(f"{summary.failed} unreadable, named in {args.output / ERRORS}", file=sys.stderr)


def check_arguments(args: argparse.Namespace) -> None:
    """Check everything that needs no model."""
    inputs.check_at_least_one("--batch-size", args.batch_size)
    for option in ("hop", "window"):
        inputs.check_seconds(f"--{option}", getattr(args, option))
    if not args.folder.is_dir():
        raise FileNotFoundError(f"{args.folder} is not a folder; give a folder of recordings")
    inputs.find_files([str(args.folder)])
    parent = next(path for path in (args.output, *args.output.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise NotADirectoryError(f"--output {args.output}: {parent} is not a writable folder; give another")
    if (args.output / TABLE).exists() and not (args.output / RECORD).exists():
        raise FileExistsError(f"--output {args.output} has an {TABLE} that is not of an index; give another folder")
    if (args.output / RECORD).exists() and not args.rebuild:
        record = IndexRecord.read(args.output)
        check_folder(record, args.folder.absolute(), args.output)
        args.checkpoint = args.checkpoint or record.checkpoint
    if not args.checkpoint:
        raise ValueError("no checkpoint given; add --checkpoint PATH_OR_NAME")
    inputs.check_checkpoint(args.checkpoint)


def resume_command(args: argparse.Namespace) -> str:
    """The command that continues an interrupted one; window and hop are recorded in the index."""
    command = ["python", "-m", "clap", "index", args.folder, "--checkpoint", args.checkpoint, "--output", args.output]
    command += [] if args.tokenizer is None else ["--tokenizer", args.tokenizer]
    command += [] if args.device == "auto" else ["--device", args.device]
    return shlex.join([*map(str, command), "--batch-size", str(args.batch_size)])

"""Inputs of the commands: recordings, captions and a checkpoint, all checked before torch is imported."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clap.audio_folder import list_folder, walk_folders
from clap.audio_formats import AUDIO_SUFFIXES
from clap.config.values import CHOICES
from clap.prompts import check_texts
from clap.published.hub import fetch_source

if TYPE_CHECKING:
    from clap.commands.embedder import Embedder

CHECKPOINT_HELP = "run folder, checkpoint, or published weights"
# Of a checkpoint of this package, a Hugging Face model, and a run.
CHECKPOINT_FILES = ("config.yaml", "config.json", "checkpoints")


def add_model_arguments(parser: argparse.ArgumentParser, *, files: str = "+") -> None:
    """Add the arguments that all commands with a model share; `files` is the argparse `nargs` of the files."""
    parser.add_argument(
        "files", nargs=files, metavar="FILES", help="recordings, folders of them, or patterns ('**/*.wav')"
    )
    add_checkpoint_arguments(parser)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the arguments of `load_embedder`."""
    parser.add_argument("--checkpoint", required=required, metavar="PATH_OR_NAME", help=CHECKPOINT_HELP)
    parser.add_argument("--windows", choices=["mean"], help="average the embeddings of all windows of longer clips")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `load_embedder` that do not depend on its inputs."""
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="tokenizer of the text encoder, if the checkpoint does not contain one"
    )
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: %(default)s")


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", nargs="+", action="extend", default=[], metavar="CAPTION", help="captions")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="text file with one caption per line")


def check_model_arguments(args: argparse.Namespace) -> list[str]:
    """Check the arguments that need no model, and return the recordings."""
    check_at_least_one("--batch-size", args.batch_size)
    files = find_files(args.files)
    check_checkpoint(args.checkpoint)
    return files


def check_at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{option} {value} is too small; give 1 or more")


def check_seconds(option: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{option} {value:g} is not a positive number of seconds; change it")


def find_files(names: Sequence[str]) -> list[str]:
    """Recordings given by path, folder or pattern, without duplicates, in the order given.

    Raises:
        FileNotFoundError: a path, pattern or folder yields no recording.
    """
    found = {name: list(expand_path(name)) for name in names}
    nothing = [name for name, files in found.items() if not files]
    if absent := [name for name in nothing if not os.path.isdir(name)]:
        raise FileNotFoundError(f"no such recording: {', '.join(absent)}; give files, folders or patterns ('**/*.wav')")
    if nothing:
        raise FileNotFoundError(
            f"no recordings in {', '.join(nothing)}; supported suffixes: {', '.join(AUDIO_SUFFIXES)}"
        )
    return list(dict.fromkeys(file for files in found.values() for file in files))


def expand_path(name: str) -> Iterator[str]:
    """Recordings at a path, in a folder and its subfolders, or matched by a pattern that the shell has not expanded.

    Broken links and kinds that cannot be decoded are among them, so that reading reports them.
    """
    if os.path.isdir(name):
        yield from list_folder(name)
    elif os.path.lexists(name):
        yield name
    elif glob.has_magic(name):
        for match in expand_pattern(name):
            above = tuple(os.path.realpath(parent) for parent in Path(os.path.normpath(match)).parents)
            yield from list_folder(match, above) if os.path.isdir(match) else [match]


def expand_pattern(pattern: str) -> Iterator[str]:
    """Paths that match a pattern as of `glob`, in order of names; its ** would follow a loop of links without end."""
    before, stars, after = pattern.partition("**/")
    if not stars or (before and not before.endswith("/")):
        yield from sorted(glob.glob(pattern))
        return
    for base in glob.glob(before) if before else [""]:
        for folder in walk_folders(base or "."):
            folder = folder if base else os.path.normpath(folder)
            yield from expand_pattern(os.path.join("" if folder == "." else glob.escape(folder), after))


def check_checkpoint(source: str) -> None:
    """Reject a checkpoint that does not exist; a checkpoint on the hub is downloaded.

    Raises:
        FileNotFoundError: not a file, folder or hub name, or a folder without a checkpoint.
    """
    if Path(source + ".old").is_dir():  # replacing the checkpoint was interrupted; from_ckpt reads the old one
        return
    path = fetch_source(source)
    if path.is_dir() and not any((path / name).exists() for name in CHECKPOINT_FILES):
        raise FileNotFoundError(
            f"{source} is not a checkpoint: it contains none of {', '.join(CHECKPOINT_FILES)}; "
            "give a run folder or a checkpoint folder"
        )


def read_texts(texts: Sequence[str], path: Path | None, what: str) -> list[str]:
    """Texts from the command line, then from a file with one text per line; trailing blank lines are ignored.

    Args:
        what: the kind of text, for error messages.

    Raises:
        ValueError: a text is blank or not UTF-8, or the file is not text.
    """
    if blank := [text for text in texts if not text.strip()]:
        raise ValueError(f"a {what} is blank: {blank[0]!r}; remove it")
    check_texts(texts, what)
    if path is None:
        return list(texts)
    try:
        content = path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; write one {what} per line") from None
    if not content:
        raise ValueError(f"{path} is empty; write one {what} per line")
    lines = content.split("\n")  # str.splitlines also splits at characters within a text, such as U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"{path}: line {number} is blank; write one {what} per line")
    return [*texts, *(line.strip() for line in lines)]


def load_embedder(args: argparse.Namespace) -> Embedder:
    """Load the checkpoint onto its device."""
    from clap.commands.embedder import Embedder  # imports torch and transformers, so after all checks

    return Embedder(
        args.checkpoint,
        tokenizer=args.tokenizer,
        windows=args.windows,
        device=args.device,
        batch_size=args.batch_size,
    )


def exit_for_skipped(listed: int, used: int) -> None:
    """Exit with status 1 if files were skipped."""
    if used < listed:
        sys.exit(f"error: {listed - used} of {listed} files skipped, see above; the results of the others are written")

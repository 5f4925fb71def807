"""What the verbs take: recordings, captions and a checkpoint, all checked before torch is imported."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clap.config.values import CHOICES
from clap.corpus import AUDIO_SUFFIXES
from clap.published.hub import fetch_source

if TYPE_CHECKING:
    from clap.commands.embedder import Embedder

CHECKPOINT_FILES = ("config.yaml", "config.json", "checkpoints")  # ours, Hugging Face's, a run's


def add_model_arguments(parser: argparse.ArgumentParser, *, files: str = "+") -> None:
    """Files (their argparse `nargs`) and checkpoint, the same for every verb."""
    parser.add_argument(
        "files", nargs=files, metavar="FILES", help="recordings, folders of them, or patterns ('**/*.wav')"
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH_OR_NAME", help="a run, a checkpoint, or published weights"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="the text encoder's, where the checkpoint brings none")
    parser.add_argument("--windows", choices=["mean"], help="average all windows of longer clips")
    parser.add_argument("--device", choices=CHOICES["device"], default="auto")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="clips at once (default: 16)")


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", nargs="+", action="extend", default=[], metavar="CAPTION", help="captions")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="captions, one a line")


def check_model_arguments(args: argparse.Namespace) -> list[str]:
    """The files that are meant; refuse what no model is needed to refuse."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size} is not 1 or more")
    files = find_files(args.files)
    check_checkpoint(args.checkpoint)
    return files


def find_files(names: Sequence[str]) -> list[str]:
    """Recordings that are named, lie in named folders, or match patterns; each once, in the order named.

    Raises:
        FileNotFoundError: a name, pattern or folder leads to no recording.
    """
    found = {name: list(expand_path(name)) for name in names}
    nothing = [name for name, files in found.items() if not files]
    if absent := [name for name in nothing if not os.path.isdir(name)]:
        raise FileNotFoundError(f"no such recording: {', '.join(absent)}; give files, folders or patterns ('**/*.wav')")
    if nothing:
        raise FileNotFoundError(f"no recordings below {', '.join(nothing)}, that is {', '.join(AUDIO_SUFFIXES)}")
    return list(dict.fromkeys(file for files in found.values() for file in files))


def expand_path(name: str) -> Iterator[str]:
    """Recordings at a path, below a folder, or behind a pattern that the shell left as it is."""
    if os.path.isdir(name):
        for folder, folders, files in os.walk(name):
            folders.sort()
            hidden = (file for file in sorted(files) if not file.startswith("."))
            yield from (os.path.join(folder, file) for file in hidden if file.lower().endswith(AUDIO_SUFFIXES))
    elif os.path.exists(name):
        yield name
    elif glob.has_magic(name):
        for match in sorted(glob.glob(name, recursive=True)):
            if os.path.isfile(match):
                yield match


def check_checkpoint(source: str) -> None:
    """Refuse a checkpoint that is not there; one on the hub is downloaded now.

    Raises:
        FileNotFoundError: no file, folder or hub name, or a folder without a checkpoint.
    """
    if Path(source + ".old").is_dir():  # its replacement was killed half way; from_ckpt knows what to do
        return
    path = fetch_source(source)
    if path.is_dir() and not any((path / name).exists() for name in CHECKPOINT_FILES):
        raise FileNotFoundError(
            f"{source}: no checkpoint in this folder, which holds none of {', '.join(CHECKPOINT_FILES)}"
        )


def read_texts(texts: Sequence[str], path: Path | None, what: str) -> list[str]:
    """Texts of the command line, then those of a file, one a line; blank lines at its end do not count.

    Args:
        what: what they are, for errors.

    Raises:
        ValueError: one is blank, or the file is no text.
    """
    if blank := [text for text in texts if not text.strip()]:
        raise ValueError(f"a {what} is blank: {blank[0]!r}")
    if path is None:
        return list(texts)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8; give one {what} a line") from None
    if not lines:
        raise ValueError(f"{path}: empty; give one {what} a line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number}: blank; give one {what} a line")
    return [*texts, *(line.strip() for line in lines)]


def load_embedder(args: argparse.Namespace) -> Embedder:
    """The checkpoint's model on its device, ready to embed files."""
    from clap.commands.embedder import Embedder  # torch and transformers, after all arguments are checked

    return Embedder(
        args.checkpoint,
        tokenizer=args.tokenizer,
        windows=args.windows,
        device=args.device,
        batch_size=args.batch_size,
    )


def exit_for_skipped(listed: int, used: int) -> None:
    """Exit with status 1 where files were skipped, after all else is done."""
    if used < listed:
        sys.exit(f"error: {listed - used} of {listed} files skipped, they are named above; the others are done")

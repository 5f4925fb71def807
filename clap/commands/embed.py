"""`python -m clap embed FILES... --checkpoint PATH`: write embeddings of recordings and captions to a file."""

import argparse
from pathlib import Path
from typing import Any

from clap.atomic import write_atomic
from clap.commands import inputs, output

FORMATS = ("npz", "json", "jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap embed`."""
    inputs.add_model_arguments(parser, files="*")
    inputs.add_caption_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("embeddings.npz"),
        metavar="FILE",
        help=".npz with arrays audio (n, embed_dim), files, text, captions; or .json, .jsonl (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write unit-norm embeddings and print their shapes."""
    form = output.choose_format(args.output, None)
    if form not in FORMATS:
        raise ValueError(f"--output {args.output}: embeddings are written as {', '.join(FORMATS)}; change the suffix")
    captions = inputs.read_texts(args.text, args.captions, "caption")
    if not args.files and not captions:
        raise ValueError("nothing to embed; give files, --text or --captions")
    files = inputs.check_model_arguments(args)
    embedder = inputs.load_embedder(args)
    clap = embedder.clap
    arrays: dict[str, Any] = {}
    if captions:  # before the audio, so that a tokenizer error appears early
        text = clap.get_text_embeddings(captions, batch_size=args.batch_size).cpu().numpy()
    used = []
    if files:
        used, audio = embedder.embed_files(files)
        arrays |= {"audio": audio.numpy(), "files": used}
    if captions:
        arrays |= {"text": text, "captions": captions}
    write_atomic(args.output, output.to_npz(arrays) if form == "npz" else output.to_json(to_entries(arrays), form))
    sizes = [f"{name} {arrays[name].shape}" for name in ("audio", "text") if name in arrays]
    print(f"{args.output}: {', '.join(sizes)}")
    inputs.exit_for_skipped(len(files), len(used))


def to_entries(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """One JSON object per file and per caption."""
    entries = []
    for key, names, rows in (("file", "files", "audio"), ("caption", "captions", "text")):
        pairs = zip(arrays.get(names, []), arrays.get(rows, []), strict=True)
        entries += [{key: name, "embedding": row.tolist()} for name, row in pairs]
    return entries

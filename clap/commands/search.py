"""`python -m clap search TEXT... --index DIR`: find recordings by text or by sound."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clap.commands import inputs, output
from clap.log_lines import align_columns
from clap.sound_index.sound_index import Match, SoundIndex
from clap.text_table import shorten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap search`."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to find")
    parser.add_argument("--sound", nargs="+", action="extend", default=[], metavar="FILE", help="find similar sounds")
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="an --output of `index`")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="matches of a query (default: %(default)s)")
    parser.add_argument(
        "--per-file", type=int, default=1, metavar="N", help="most matches in one long file (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write: .txt, .json or .jsonl")
    parser.add_argument(
        "--checkpoint", metavar="PATH_OR_NAME", help="the index's model, if it has moved (default: where it was)"
    )
    inputs.add_device_arguments(parser)
    parser.set_defaults(windows=None)


def run(args: argparse.Namespace) -> None:
    """Print the matches of each query, best first."""
    form = output.choose_format(args.output, "json" if args.json else None)
    if form == "npz":
        raise ValueError(f"--output {args.output}: matches are written as .txt, .json or .jsonl; change the suffix")
    for option in ("top", "per_file", "batch_size"):
        inputs.check_at_least_one(f"--{option.replace('_', '-')}", getattr(args, option))
    texts = inputs.read_texts(args.texts, None, "query")
    sounds = inputs.find_files(args.sound)
    if not texts and not sounds:
        raise ValueError('nothing to search for; give a text, as in `python -m clap search "a dog barks"`, or --sound')
    index = SoundIndex.open(args.index)
    choose_checkpoint(args, index.record.checkpoint)
    embedder = inputs.load_embedder(args)
    embedder.check_index(index.record)
    clap = embedder.clap
    queries = [("text", text, clap.get_text_embeddings([text])[0]) for text in texts]
    queries += [("sound", sound, clap.get_audio_embeddings([sound])[0]) for sound in sounds]
    found = [
        {kind: query, "matches": make_rows(index.search(embedding, args.top, per_file=args.per_file))}
        for kind, query, embedding in queries
    ]
    content = make_table(found) if form == "table" else output.to_json(found, form)
    output.write_content(args.output, content, f"matches of {len(found)} queries")


def choose_checkpoint(args: argparse.Namespace, recorded: str) -> None:
    """Use the model of the index, unless another place is given; FileNotFoundError if it is not there."""
    try:
        inputs.check_checkpoint(args.checkpoint or recorded)
    except FileNotFoundError as error:
        advice = "" if args.checkpoint else "; it is the model of the index: if it has moved, add --checkpoint"
        raise FileNotFoundError(f"{error}{advice}") from None
    args.checkpoint = args.checkpoint or recorded


def make_rows(matches: Sequence[Match]) -> list[dict]:
    return [{"rank": rank, **vars(match)} for rank, match in enumerate(matches, start=1)]


def make_table(found: Sequence[dict]) -> bytes:
    """Columns query, rank, score, path and time; the query is printed in its first row only."""
    rows = [("query", "rank", "score", "time", "path")]
    for entry in found:
        query = shorten(entry.get("text") or entry["sound"], 40)
        for row in entry["matches"]:
            time = f"{output.format_time(row['start'])} - {output.format_time(row['end'])}"
            rows.append((query if row["rank"] == 1 else "", str(row["rank"]), f"{row['score']:.3f}", time, row["path"]))
    return output.encode_utf8(align_columns(rows, numbers=(1, 2, 3)) + "\n")

"""`python -m clap segments FILE --checkpoint PATH --text TEXT...`: when the sounds of texts occur in a recording."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from clap.atomic import write_atomic
from clap.commands import inputs, output
from clap.log_lines import align_columns
from clap.sound_index.events import Event, SegmentScores, check_median, find_events
from clap.text_table import shorten, tabulate, to_csv

THRESHOLD, PROBABLE = 0.3, 0.5  # of a cosine, of a probability
SUFFIXES = (".png", ".csv", ".json", ".jsonl", ".txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap segments`."""
    parser.add_argument("file", metavar="FILE", help="a recording of any length")
    parser.add_argument("--checkpoint", required=True, metavar="PATH_OR_NAME", help=inputs.CHECKPOINT_HELP)
    inputs.add_caption_arguments(parser)
    parser.add_argument("--hop", type=float, metavar="S", help="seconds between windows (default: a quarter window)")
    parser.add_argument("--window", type=float, metavar="S", help="seconds (default, and at most: the model's window)")
    parser.add_argument(
        "--softmax", action="store_true", help="score by probability among the texts instead of cosine similarity"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="T", help=f"score of an event (default: {THRESHOLD}; --softmax: {PROBABLE})"
    )
    parser.add_argument("--median", type=int, default=3, metavar="N", help="windows to smooth over, odd (default: 3)")
    parser.add_argument("--json", action="store_true", help="print the events as JSON")
    parser.add_argument(
        "--output", type=Path, nargs="+", default=[], metavar="FILE",
        help=f"a plot of the scores over time (.png), or the events ({', '.join(SUFFIXES[1:])})",
    )  # fmt: skip
    parser.add_argument("--scores", type=Path, metavar="FILE.csv", help="write the scores of every window")
    inputs.add_device_arguments(parser)
    parser.set_defaults(windows=None)


def run(args: argparse.Namespace) -> None:
    """Print the events, and write the files."""
    texts = check_arguments(args)
    embedder = inputs.load_embedder(args)
    segments = embedder.score_over_time(args.file, texts, window=args.window, hop=args.hop)
    if args.softmax:
        segments = segments.softmax(embedder.clap.logit_scale.exp().item())
    threshold = args.threshold if args.threshold is not None else PROBABLE if args.softmax else THRESHOLD
    events = find_events(segments, threshold=threshold, median=args.median)
    content = make_events(events, "json" if args.json else "table")
    if not events and not args.json:
        highest = f"{segments.scores.max():.3f} before smoothing"
        content = output.encode_utf8(f"no events: the highest score is {highest}; set --threshold, now {threshold:g}\n")
    output.write_content(None, content, "")
    for path in args.output:
        if path.suffix.lower() == ".png":
            embedder.plot_segments(args.file, segments, events, path, threshold=threshold)
        else:
            form = "csv" if path.suffix.lower() == ".csv" else output.choose_format(path, None)
            write_atomic(path, make_events(events, form))
    if args.scores is not None:
        write_atomic(args.scores, make_scores(segments))


def check_arguments(args: argparse.Namespace) -> list[str]:
    """Check everything that needs no model; returns the texts without duplicates."""
    inputs.check_at_least_one("--batch-size", args.batch_size)
    check_median(args.median)
    if args.threshold is not None and math.isnan(args.threshold):
        raise ValueError("--threshold nan is not a number; change it")
    texts = list(dict.fromkeys(inputs.read_texts(args.text, args.captions, "text")))
    if not texts:
        raise ValueError("no texts given; give --text or --captions")
    if args.softmax and len(texts) < 2:
        raise ValueError("--softmax compares texts, and one is given; add another --text, or remove --softmax")
    for option in ("hop", "window"):
        inputs.check_seconds(f"--{option}", getattr(args, option))
    for path in args.output:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--output {path}: the suffix is not one of {', '.join(SUFFIXES)}; rename it")
    for path in (*args.output, *([args.scores] if args.scores else ())):
        output.check_writable(path)
    if len(inputs.find_files([args.file])) != 1 or Path(args.file).is_dir():
        raise ValueError(f"{args.file} is not one recording; give a file")
    inputs.check_checkpoint(args.checkpoint)
    return texts


def make_events(events: Sequence[Event], form: str) -> bytes:
    """Start, end, text and peak of each event."""
    entries = [vars(event) for event in events]
    if form == "csv":
        return output.encode_utf8(to_csv(tabulate(entries, ["start", "end", "text", "peak"])))
    if form != "table":
        return output.to_json(entries, form)
    rows = [("start", "end", "peak", "text")]
    for event in events:
        times = output.format_time(event.start), output.format_time(event.end)
        rows.append((*times, f"{event.peak:.3f}", shorten(event.text, 80)))
    return output.encode_utf8(align_columns(rows, numbers=(0, 1, 2)) + "\n" if events else "no events\n")


def make_scores(segments: SegmentScores) -> bytes:
    """CSV with start and end of each window, and a column for each text."""
    rows = zip(segments.times.tolist(), segments.scores.tolist(), strict=True)
    return output.encode_utf8(to_csv([("start", "end", *segments.texts), *((*time, *score) for time, score in rows)]))

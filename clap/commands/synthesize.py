"""python -m clap synthesize: write synthetic soundscapes in the layout of a published corpus."""

import argparse
from pathlib import Path

from clap.dataset.scenes.synthesize import MIN_CLIPS, WRITERS, CorpusWriter, choose_durations
from clap.dataset.synthetic import Synthetic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m clap synthesize`."""
    parser.add_argument("folder", type=Path, help="target, a new or empty folder")
    parser.add_argument("--layout", choices=tuple(WRITERS), required=True, help="layout of the files")
    parser.add_argument("--num-clips", type=int, default=220, help="total number of clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: %(default)s)")
    parser.add_argument("--sample-rate", type=int, default=44_100, help="Hz (default: %(default)s)")
    parser.add_argument("--min-duration", type=float, help="seconds (default: as in the published corpus)")
    parser.add_argument("--max-duration", type=float, help="seconds (default: as in the published corpus)")


def run(args: argparse.Namespace) -> None:
    """Write the corpus, and print where it is."""
    synthesize(
        args.folder,
        layout=args.layout,
        num_clips=args.num_clips,
        seed=args.seed,
        sample_rate=args.sample_rate,
        min_duration=args.min_duration,
        max_duration=args.max_duration,
    )
    print(f"{args.folder}: {args.num_clips} clips in the layout of {args.layout}")


def synthesize(
    folder: Path,
    *,
    layout: str,
    num_clips: int,
    seed: int = 0,
    sample_rate: int = 44_100,
    min_duration: float | None = None,
    max_duration: float | None = None,
) -> None:
    """Write `num_clips` scenes into a new or empty folder, as 16-bit WAV files with their index.

    Args:
        layout: clotho, audiocaps, esc50, urbansound8k or csv.
        min_duration, max_duration: seconds; by default as in the published corpus.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: unknown layout, too few clips, or a duration out of range.
    """
    folder = Path(folder)
    if layout not in WRITERS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(WRITERS)}; set --layout")
    if num_clips < MIN_CLIPS:
        raise ValueError(f"num_clips={num_clips} leaves a fold or split empty; set --num-clips to {MIN_CLIPS} or more")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder, or empty this one first")
    shortest, longest = choose_durations(layout, min_duration, max_duration)
    held_out = num_clips // 5  # clips of val and of test; training gets the others
    corpus = Synthetic(
        num_train=num_clips - 2 * held_out,
        num_val=held_out,
        num_test=held_out,
        seed=seed,
        min_duration=shortest,
        max_duration=longest,
    )
    WRITERS[layout](CorpusWriter(folder, corpus, num_clips, seed, sample_rate, shortest, longest))

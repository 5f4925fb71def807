"""Zero-shot classification of recordings: `python -m clap classify FILES... --checkpoint PATH --labels dog rain`.

Radford et al. 2021: the label whose prompts' mean embedding is nearest to the clip.
"""

import argparse
from pathlib import Path

import numpy as np

from clap.commands import inputs, output
from clap.prompts import TEMPLATE, check_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap classify`."""
    inputs.add_model_arguments(parser)
    parser.add_argument("--labels", nargs="+", action="extend", default=[], metavar="LABEL")
    parser.add_argument("--labels-file", type=Path, metavar="FILE", help="labels, one a line")
    parser.add_argument(
        "--template",
        nargs="+",
        default=[TEMPLATE],
        help=f"prompt, {{}} standing for the label; several are averaged (default: {TEMPLATE!r})",
    )
    output.add_output_arguments(parser, "labels")


def run(args: argparse.Namespace) -> None:
    """Give the probabilities of the labels for every file."""
    output.check_output_arguments(args)
    labels = inputs.read_texts(args.labels, args.labels_file, "label")
    if not labels:
        raise ValueError("no labels to choose from; give --labels or --labels-file")
    templates = check_prompts(labels, args.template)
    files = inputs.check_model_arguments(args)
    embedder = inputs.load_embedder(args)
    clap = embedder.clap
    class_embedding = clap.embed_classes(labels, templates)  # first: what is wrong with a tokenizer shows at once
    used, audio = embedder.embed_files(files)
    probability = clap.compute_similarity(audio.to(clap.device), class_embedding).softmax(dim=1).cpu().numpy()
    arrays = {"labels": np.array(labels), "templates": np.array(templates)}
    output.write_ranking(args, used, labels, probability=probability, **arrays)
    inputs.exit_for_skipped(len(files), len(used))

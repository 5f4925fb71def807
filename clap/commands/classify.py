"""`python -m clap classify FILES... --checkpoint PATH --labels dog rain`: zero-shot classification of recordings.

The predicted label is the one whose mean prompt embedding is closest to the clip (Radford et al. 2021).
"""

import argparse
from pathlib import Path

import numpy as np

from clap.commands import inputs, output
from clap.prompts import TEMPLATES, check_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap classify`."""
    inputs.add_model_arguments(parser)
    parser.add_argument("--labels", nargs="+", action="extend", default=[], metavar="LABEL", help="class names")
    parser.add_argument("--labels-file", type=Path, metavar="FILE", help="text file with one label per line")
    parser.add_argument(
        "--template",
        nargs="+",
        default=list(TEMPLATES),
        help="prompt with {} for the label; the embeddings of several prompts are averaged "
        f"(default: {', '.join(map(repr, TEMPLATES))})",
    )
    output.add_output_arguments(parser, "labels")


def run(args: argparse.Namespace) -> None:
    """Write the probability of each label for every file."""
    output.check_output_arguments(args)
    labels = inputs.read_texts(args.labels, args.labels_file, "label")
    if not labels:
        raise ValueError("no labels given; give --labels or --labels-file")
    templates = check_prompts(labels, args.template)
    files = inputs.check_model_arguments(args)
    embedder = inputs.load_embedder(args)
    clap = embedder.clap
    class_embedding = clap.embed_classes(labels, templates)  # first, so that a tokenizer error appears early
    used, audio = embedder.embed_files(files)
    probability = clap.compute_similarity(audio.to(clap.device), class_embedding).softmax(dim=1).cpu().numpy()
    arrays = {"labels": np.array(labels), "templates": np.array(templates)}
    output.write_ranking(args, used, labels, probability=probability, **arrays)
    inputs.exit_for_skipped(len(files), len(used))

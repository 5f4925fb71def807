"""`python -m clap similarity FILES... --checkpoint PATH --text CAPTION...`: similarity of recordings and captions."""

import argparse

import numpy as np

from clap.commands import inputs, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap similarity`."""
    inputs.add_model_arguments(parser)
    inputs.add_caption_arguments(parser)
    output.add_output_arguments(parser, "captions")


def run(args: argparse.Namespace) -> None:
    """Write the cosine similarity of every file and caption; `Clap.compute_similarity` multiplies it by logit_scale."""
    output.check_output_arguments(args)
    captions = list(dict.fromkeys(inputs.read_texts(args.text, args.captions, "caption")))
    if not captions:
        raise ValueError("no captions given; give --text or --captions")
    files = inputs.check_model_arguments(args)
    embedder = inputs.load_embedder(args)
    clap = embedder.clap
    text = clap.get_text_embeddings(captions).cpu()  # first, so that a tokenizer error appears early
    used, audio = embedder.embed_files(files)
    similarity = (audio @ text.T).numpy()
    arrays = {"captions": np.array(captions), "logit_scale": clap.logit_scale.exp().item()}
    output.write_ranking(args, used, captions, similarity=similarity, **arrays)
    inputs.exit_for_skipped(len(files), len(used))

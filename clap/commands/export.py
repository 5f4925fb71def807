"""`python -m clap export --checkpoint PATH --output DIR`: write a model as ONNX graphs that run without torch."""

import argparse
from pathlib import Path

import clap
from clap.commands import inputs
from clap.release.export_folder import check_folder, check_packages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap export`."""
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH_OR_NAME", help="run folder, checkpoint, or published weights"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder, or an earlier export")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="tokenizer of the text encoder, if the checkpoint does not contain one"
    )
    parser.add_argument("--windows", choices=["mean"], help="average the embeddings of all windows of longer clips")
    parser.add_argument("--licence", "--license", metavar="ID", help="of the weights, such as mit or cc-by-4.0")


def run(args: argparse.Namespace) -> None:
    """Export the model of a checkpoint, and print the files and the largest difference from the model."""
    check_packages()
    check_folder(args.output)
    inputs.check_checkpoint(args.checkpoint)
    settings = {"text_encoder.tokenizer": args.tokenizer} if args.tokenizer else None
    model = clap.Clap.from_ckpt(args.checkpoint, settings=settings)  # imports torch
    model.set_windows(args.windows)
    config = clap.export_onnx(model, args.output, licence=args.licence)
    for name, difference in config["largest_difference"].items():
        print(f"{name}: largest difference from the model {difference:.1g}")
    print(f"{args.output}: {', '.join(sorted(path.name for path in args.output.iterdir()))}")

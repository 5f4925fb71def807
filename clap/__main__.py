"""Commands of the clap package; `python -m clap VERB --help` lists the arguments of a command."""

import argparse
import importlib
import sys

from clap.config.secrets import hide_secrets
from clap.config.values import suggest

VERBS = {  # verb: module with add_arguments(parser) and run(arguments), and its help
    "synthesize": ("clap.commands.synthesize", "write synthetic soundscapes in the layout of a published corpus"),
    "list": ("clap.commands.list_folder", "list the recordings of a folder with a subfolder for each class, in a CSV"),
    "config": ("clap.commands.config", "print a composed config for Clap.from_config"),
    "download": ("clap.commands.download", "download the missing files of a corpus from its publisher"),
    "check": ("clap.commands.check", "find errors in a corpus and overlap between training and evaluation sets"),
    "rewrite": ("clap.commands.rewrite", "rewrite captions, or write them from keywords, by a language model"),
    "shard": ("clap.commands.shard", "write a corpus as tars in webdataset's layout, for training on large data"),
    "plan": ("clap.commands.plan", "list the jobs of a study, their estimated hours and their downloads"),
    "embed": ("clap.commands.embed", "write embeddings of recordings and captions to a file"),
    "classify": ("clap.commands.classify", "classify recordings zero-shot by the names of the labels"),
    "similarity": ("clap.commands.similarity", "print the cosine similarity of recordings and captions"),
    "index": ("clap.commands.index", "index a folder of recordings for search, or bring its index up to date"),
    "search": ("clap.commands.search", "find recordings of an index by text or by sound"),
    "segments": ("clap.commands.segments", "find when the sounds of texts occur in a long recording"),
    "export": ("clap.commands.export", "write a model as ONNX graphs that run without torch"),
    "demo": ("clap.commands.demo", "serve a page that searches sounds by text, and labels sounds by text"),
    "push_to_hub": ("clap.commands.push_to_hub", "push a model with its model card to the Hugging Face hub"),
    "upload": ("clap.commands.upload", "send what a run or a sweep could not log to MLflow"),
    "register": ("clap.commands.register", "register a trained model in the MLflow Model Registry for serving"),
    "report": ("clap.commands.report", "write the table and figures of a study into its note"),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m clap", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (_, summary) in VERBS.items():
        verbs.add_parser(name, help=summary, add_help=False)
    if not argv or argv[0] not in VERBS:
        if argv and not argv[0].startswith("-"):
            sys.exit(f"error: {argv[0]!r} is not a command{suggest(argv[0], VERBS)}; commands: {', '.join(VERBS)}")
        parser.parse_args(argv)
    module_name, summary = VERBS[argv[0]]
    module = importlib.import_module(module_name)
    command = argparse.ArgumentParser(prog=f"python -m clap {argv[0]}", description=summary)
    module.add_arguments(command)
    try:
        module.run(command.parse_intermixed_args(argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {hide_secrets(' '.join(str(error).split()))}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Small commands around the models: python -m clap VERB ..."""

import argparse
import importlib
import sys

from clap.config.values import suggest

VERBS = {  # verb: module with add_arguments(parser) and run(arguments), what it does
    "synthesize": ("clap.commands.synthesize", "write synthetic soundscapes in the layout of a published corpus"),
    "config": ("clap.commands.config", "print a composed config, for Clap.from_config"),
    "download": ("clap.commands.download", "fetch a corpus from its publisher, as far as it is not there yet"),
    "check": ("clap.commands.check", "look for faults in a corpus, and for what training shares with evaluation sets"),
    "plan": ("clap.commands.plan", "list the jobs of a study with estimated hours, and what they would download"),
    "embed": ("clap.commands.embed", "write embeddings of recordings and captions to a file"),
    "classify": ("clap.commands.classify", "tell which of some labels recordings are, by the labels' names alone"),
    "similarity": ("clap.commands.similarity", "tell how near captions are to recordings"),
    "upload": ("clap.commands.upload", "send a run or a sweep to MLflow that was lost to it while it ran"),
    "register": ("clap.commands.register", "put a trained model into MLflow's registry, from where it can be served"),
    "report": ("clap.commands.report", "write the table and figures of a study into its note"),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m clap", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (_, summary) in VERBS.items():
        verbs.add_parser(name, help=summary, add_help=False)
    if not argv or argv[0] not in VERBS:
        if argv and not argv[0].startswith("-"):
            sys.exit(f"error: {argv[0]!r} is not one of {', '.join(VERBS)}{suggest(argv[0], VERBS)}")
        parser.parse_args(argv)
    module_name, summary = VERBS[argv[0]]
    module = importlib.import_module(module_name)
    command = argparse.ArgumentParser(prog=f"python -m clap {argv[0]}", description=summary)
    module.add_arguments(command)
    try:
        module.run(command.parse_intermixed_args(argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])

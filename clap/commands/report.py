"""python -m clap report: the table and figures of a study, from its runs in MLflow.

They go into the note experiments/STUDY.md, between its lines `<!-- report -->` and `<!-- /report -->`; every number,
the table in LaTeX, the figures and the origin of each number go into experiments/STUDY/.
"""

import argparse
from pathlib import Path

from clap.study.factors import load_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m clap report`."""
    parser.add_argument("study", help="a yaml of conf/experiment that declares a study: encoder_ablation")
    parser.add_argument("--uri", default="outputs/mlflow.db", help="MLflow store or server (default: %(default)s)")
    parser.add_argument("--sweep", metavar="RUN_ID", help="parent run (default: the study's newest)")
    parser.add_argument(
        "--output", type=Path, default=Path("experiments"), metavar="FOLDER", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> None:
    """Write the report, and print its table and where the rest is."""
    study = load_study(args.study)

    from clap.study.report import write_report  # MLflow and matplotlib, after the check that there is such a study

    print(write_report(study, uri=args.uri, sweep_id=args.sweep, output=args.output))

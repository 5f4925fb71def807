"""`python -m clap report`: write the table and figures of a study from its runs in MLflow.

The report is written into the note experiments/STUDY.md, between the lines `<!-- report -->` and `<!-- /report -->`.
The folder experiments/STUDY/ receives the full numbers, the table in LaTeX, the figures and the lineage of each number.
"""

import argparse
from pathlib import Path

from clap.study.factors import load_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap report`."""
    parser.add_argument("study", help="name of a study in conf/experiment: encoder_ablation")
    parser.add_argument("--uri", default="outputs/mlflow.db", help="MLflow store or server (default: %(default)s)")
    parser.add_argument("--sweep", metavar="RUN_ID", help="parent run of the sweep (default: the newest of the study)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("experiments"),
        metavar="FOLDER",
        help="folder of the note (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the report; print its table and the paths of the files."""
    study = load_study(args.study)

    from clap.study.report import write_report  # imports MLflow and matplotlib, so after the check of the name

    print(write_report(study, uri=args.uri, sweep_id=args.sweep, output=args.output))

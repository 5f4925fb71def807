"""Robustness curves averaged over seeds: python experiments/robustness.py OUTPUT EVALUATION EVALUATION ...

EVALUATION is the folder of an `evaluate.py` with 'evaluation=[robustness]', one for each seed of a training. Writes
OUTPUT/SPLIT-DATASET/: robustness.csv, a figure of each distortion and overview.png, with means over the runs and, from
three runs on, 95 % intervals over seeds and clips (`seed_interval`). Prints the table in Markdown.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clap.atomic import read_json
from clap.evaluation.results import RecordedEvaluation, label_metric, read_results
from clap.evaluation.robustness import CLEAN
from clap.evaluation.robustness_report import Point, group_points, list_rows, write_curves
from clap.run_folder import METRICS
from clap.study.scores import Column, RunScores, make_column
from clap.study.statistics import MIN_SEEDS
from clap.text_table import to_markdown

TASK = "robustness"


@dataclass(frozen=True)
class Run:
    """The metrics of an evaluation, and those of its results that are of robustness."""

    folder: Path
    metrics: dict[str, float]
    evaluations: list[RecordedEvaluation]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a folder of evaluate.py; ValueError if it has no result of robustness."""
        found = [own for own in read_results(folder / "evaluation") if own.protocol["evaluator"] == TASK]
        if not found:
            raise ValueError(
                f"{folder} has no result of evaluation=[robustness]; give the folder of such an evaluate.py"
            )
        return cls(folder, read_json(folder / METRICS), found)


def average(runs: Sequence[Run], prefix: str) -> tuple[dict[str, Point], list[Column]]:
    """Mean and interval of each metric that all runs have, by its name after the prefix, and their columns.

    Raises:
        ValueError: the runs are not comparable, see `make_column`.
    """
    shared = [name for name in runs[0].metrics if name.startswith(prefix)]
    shared = [name for name in shared if all(name in run.metrics for run in runs)]
    points, columns = {}, []
    for name in shared:
        scores = {str(i): RunScores(str(run.folder), run.metrics[name], run.evaluations) for i, run in enumerate(runs)}
        columns.append(make_column(name, scores))
        estimate = columns[-1].estimate([[run_id] for run_id in scores])
        points[name.removeprefix(prefix)] = Point(estimate.mean, estimate.interval)
    return points, columns


def report(output: Path, runs: Sequence[Run]) -> str:
    """Write the curves of each split and dataset; return the tables."""
    tables = []
    for protocol in (own.protocol for own in runs[0].evaluations):
        split, dataset = protocol["split"], protocol["dataset"]
        points, columns = average(runs, f"{split}/{dataset}/{TASK}/")
        clean, seeds = points.pop(CLEAN), f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
        bars = "error bars: 95 % intervals over seeds and clips" if len(runs) >= MIN_SEEDS else "no intervals"
        write_curves(
            output / f"{split}-{dataset}",
            clean,
            points,
            metric=label_metric(protocol["metric"]),
            data=f"{dataset} ({split})",
            note=f"{seeds}, {protocol['clips']} clips; {bars}",
            chance=columns[0].chance,
        )
        tables.append(f"{split}/{dataset}, {protocol['metric']}\n\n{format_table(clean, points)}")
    return "\n\n".join(tables)


def format_table(clean: Point, points: dict[str, Point]) -> str:
    """One line for each distortion: its levels, and the number at each of them."""
    rows = list_rows(clean, group_points(points), None)[2:]
    lines = [["distortion", "level", "levels", "values"]]
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name]
        levels, values = ([str(row[1]) for row in own], [f"{row[2]:.3f}" for row in own])
        lines.append([f"`{name}`", str(own[0][-1]), ", ".join(levels), ", ".join(values)])
    ends = "" if clean.interval is None else f" [{clean.ends[0]:.3f}, {clean.ends[1]:.3f}]"
    lines.insert(1, ["none", "", "", f"{clean.value:.3f}{ends}"])
    return to_markdown(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the figures")
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders of evaluate.py, one for each seed")
    args = parser.parse_args(arguments)
    try:
        print(report(args.output, [Run.read(folder) for folder in args.evaluations]))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

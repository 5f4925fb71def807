"""python -m clap report: the table and figures of a study, from its runs in MLflow.

They go into the note experiments/STUDY.md, between its lines `<!-- report -->` and `<!-- /report -->`; every number,
the table in LaTeX, the figures and the origin of each number go into experiments/STUDY/.
"""

import argparse
import json
from pathlib import Path

from clap.config.compose import find_yamls
from clap.study.factors import read_study


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
    print(write_report(args.study, uri=args.uri, sweep_id=args.sweep, output=args.output))


def write_report(name: str, *, uri: str, sweep_id: str | None, output: Path) -> str:
    """Read a study's runs and write its report; returns the table and where the rest is."""
    study = read_study(name)

    from clap.study import figures, note, table  # seconds of imports, after the check that there is such a study
    from clap.study.runs import read_study_runs

    runs = read_study_runs(study, uri, sweep_id=sweep_id)
    rows = table.make_rows(runs)
    within = {column.metric: table.within_run(column) for column in runs.columns}
    drawn = figures.draw_study(runs, rows)
    block = note.make_block(runs, rows, within, list(drawn))
    path, folder = output / f"{name}.md", output / name
    if path.exists():
        text = note.replace_block(path.read_text(), block, path)
    else:
        text = note.make_note(runs, block, note.read_question(find_yamls() / "experiment" / f"{name}.yaml"))
    lines = table.format_table(runs, rows)
    comment = [note.describe_tests(rows), *map(note.describe_protocol, note.by_protocol(runs.columns))]
    protocols = {column.metric: column.protocol for column in runs.columns}
    files = {
        "table.tex": table.to_latex(lines, len(study.factors), comment="\n".join(comment)),
        "table.csv": table.to_csv(table.record_cells(runs, rows)),
        "runs.csv": table.to_csv(table.record_runs(runs, within)),
        "protocols.json": json.dumps(protocols, indent=2, ensure_ascii=False) + "\n",
        "lineage.md": table.format_lineage(runs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_text(content)
    for figure_name, figure in drawn.items():
        figures.save(figure, folder / figure_name)
    path.write_text(text)
    where = f"{shorten(path)}; figures, LaTeX, CSV and lineage in {shorten(folder)}/"
    return f"{table.to_markdown(lines, len(study.factors))}\n{where}"


def shorten(path: Path) -> Path:
    """Relative to where the user is, if below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

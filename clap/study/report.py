"""Writes the report of a study from its runs in MLflow: note, tables, figures and lineage."""

import json
from pathlib import Path

from clap.atomic import write_atomic
from clap.config.compose import find_conf_dir
from clap.run_folder import show_path
from clap.study import figures, note, table
from clap.study.factors import Study, read_question
from clap.study.runs import read_study_runs
from clap.text_table import tabulate, to_csv, to_markdown


def write_report(study: Study, *, uri: str, sweep_id: str | None, output: Path) -> str:
    """Read the runs of a study and write its report; return the table and the paths of the files as text."""
    runs = read_study_runs(study, uri, sweep_id=sweep_id)
    rows = table.make_rows(runs)
    clip_intervals = {column.metric: column.clip_intervals() for column in runs.columns}
    drawn = figures.draw_study(runs, rows)
    block = note.make_block(runs, rows, clip_intervals, list(drawn))
    path, folder = output / f"{study.name}.md", output / study.name
    if path.exists():
        text = note.replace_block(path.read_text(), block, path)
    else:
        text = note.make_note(runs, block, read_question(find_conf_dir() / "experiment" / f"{study.name}.yaml"))
    lines = table.format_table(runs, rows)
    comment = [note.describe_tests(runs, rows), *map(note.describe_protocol, note.group_by_protocol(runs.columns))]
    protocols = {column.metric: column.protocol for column in runs.columns}
    files = {
        "table.tex": table.to_latex(lines, len(study.factors), comment="\n".join(comment)),
        "table.csv": to_csv(tabulate(table.make_cell_records(runs, rows))),
        "runs.csv": to_csv(tabulate(table.make_run_records(runs, clip_intervals))),
        "protocols.json": json.dumps(protocols, indent=2, ensure_ascii=False) + "\n",
        "lineage.md": table.format_lineage(runs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_atomic(folder / file, content.encode())
    for figure_name, figure in drawn.items():
        figures.save_png_and_svg(figure, folder / figure_name)
    write_atomic(path, text.encode())
    paths = f"{show_path(path)}; figures, LaTeX, CSV and lineage in {show_path(folder)}/"
    return f"{to_markdown(lines, len(study.factors))}\n{paths}"

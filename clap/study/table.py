"""The table of a study as Markdown, LaTeX and CSV, and the lineage of its numbers."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clap.run_folder import describe_clips
from clap.study.runs import Cell, Run, StudyRuns, shorten_key
from clap.study.scores import Column, cut
from clap.study.statistics import Comparison, Interval, clip_interval, compare, holm, seed_interval

COSTS = {  # shown if logged: name -> heading, divisor, unit
    "cost/parameters": ("parameters", 1e6, " M"),
    "cost/gigaflops_per_clip": ("gigaflops/clip", 1.0, ""),
    "cost/clips_per_second": ("clips/s", 1.0, ""),
    "cost/seconds": ("minutes", 60.0, ""),
    "cost/peak_memory_bytes": ("peak memory", 1e9, " GB"),
    "cost/peak_gpu_memory_bytes": ("peak GPU memory", 1e9, " GB"),
}
EMPTY = "–"
WIDEST = 40  # characters to which a column is padded; error messages overflow it
LONGEST_GAP = 200  # characters of an error message below the table
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


@dataclass
class Result:
    """One metric of one cell.

    Attributes:
        comparison: with the baseline; None for the baseline, and without a common seed.
        adjusted: p value with Holm's correction over the table.
    """

    mean: float
    interval: Interval | None
    comparison: Comparison | None = None
    adjusted: float | None = None


@dataclass
class Row:
    """One cell: metric -> result, and cost -> mean over runs; both empty without a finished run."""

    cell: Cell
    results: dict[str, Result]
    cost: dict[str, float]


def make_rows(runs: StudyRuns) -> list[Row]:
    """One row per cell, the baseline first; p values are corrected over all tests of the table."""
    baseline = runs.cells[0]
    rows = [
        Row(cell, {column.metric: summarize_cell(column, cell, baseline) for column in runs.columns}, mean_cost(cell))
        if cell.finished
        else Row(cell, {}, {})
        for cell in runs.cells
    ]
    results = [result for row in rows for result in row.results.values()]
    p_values = [result.comparison.p_value if result.comparison else None for result in results]
    for result, adjusted in zip(results, holm(p_values), strict=True):
        result.adjusted = adjusted
    return rows


def summarize_cell(column: Column, cell: Cell, baseline: Cell) -> Result:
    """Mean and interval over the seeds of a cell, and its difference from the baseline over their common seeds."""
    values = [column.scores[run_id].value for run_id in cell.ids()]
    result = Result(sum(values) / len(values), seed_interval(column.matrix(cell.ids()), column.counts))
    both = [seed for seed in cell.finished if seed in baseline.finished]
    if both and cell is not baseline:
        pair = (column.matrix(side.ids(both)) for side in (baseline, cell))
        result.comparison = compare(*pair, column.counts)
    return result


def mean_cost(cell: Cell) -> dict[str, float]:
    """Mean of each cost metric over the finished runs."""
    costs = defaultdict(list)
    for run in cell.finished.values():
        for name, value in run.metrics.items():
            if name.startswith("cost/"):
                costs[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(costs.items())}


def compute_clip_intervals(column: Column) -> dict[str, Interval]:
    """Run id -> interval of its score over clips; empty for a metric without per-clip values."""
    if column.counts is None:
        return {}
    return {run_id: clip_interval(score.totals, score.counts) for run_id, score in column.scores.items()}


def format_table(runs: StudyRuns, rows: Sequence[Row]) -> list[list[str]]:
    """The table as rows of strings, the header first: factors, metrics with differences, seeds, costs."""
    costs = [name for name in COSTS if any(name in row.cost for row in rows)]
    metrics = [heading for column in runs.columns for heading in (column.label, "to baseline")]
    header = [*map(shorten_key, runs.study.factors), *metrics, "seeds", *(COSTS[name][0] for name in costs)]
    lines = [header]
    for row in rows:
        cell = row.cell
        if row.results:
            quality = [word for result in row.results.values() for word in format_result(result, row is rows[0])]
        else:
            quality = [describe_empty(cell), *[EMPTY] * (len(metrics) - 1)]
        prices = [format_cost(name, row.cost.get(name)) for name in costs]
        lines.append([*cell.levels.values(), *quality, f"{len(cell.finished)}/{len(cell.runs)}", *prices])
    return lines


def format_result(result: Result, is_baseline: bool) -> tuple[str, str]:
    """`0.456 ± 0.044` and `+0.034 ± 0.052 (p = 0.21)`."""
    mean = format_number(result.mean) + format_half(result.interval)
    if is_baseline or result.comparison is None:
        return mean, "baseline" if is_baseline else EMPTY
    difference = result.comparison
    p_value = f" ({format_p(result.adjusted)})" if result.adjusted is not None else ""
    return mean, f"{format_number(difference.difference, '+')}{format_half(difference.interval)}{p_value}"


def format_number(value: float, sign: str = "") -> str:
    """Three decimals, one for numbers from 100 on; never a negative zero."""
    decimals = 3 if abs(value) < 100 else 1
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def format_half(interval: Interval | None) -> str:
    """` ± ` and half the width of an interval, which is symmetric around its mean."""
    return f" ± {format_number((interval.high - interval.low) / 2)}" if interval else ""


def format_p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}" if value < 0.1 else f"p = {value:.2f}"


def format_cost(name: str, value: float | None) -> str:
    """Three significant digits in the unit of COSTS."""
    if value is None:
        return EMPTY
    _, size, unit = COSTS[name]
    value /= size
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}{unit}"


def describe_empty(cell: Cell) -> str:
    """Outcome of the first started run of a cell without results, else `missing`; the reason is below the table."""
    return next((outcome.split(":")[0] for outcome in cell.gaps.values() if outcome != "missing"), "missing")


def describe_gaps(cell: Cell) -> str:
    """`3 of 5 seeds; seed 3 failed: no memory; seeds 4, 5 missing`."""
    seeds = defaultdict(list)
    for seed, outcome in cell.gaps.items():
        seeds[outcome].append(seed)
    parts = [
        f"seed{'s' * (len(some) > 1)} {', '.join(some)} {cut(outcome, LONGEST_GAP)}" for outcome, some in seeds.items()
    ]
    return "; ".join([f"{len(cell.finished)} of {len(cell.runs)} seeds", *parts])


def to_markdown(lines: Sequence[Sequence[str]], num_text_columns: int) -> str:
    """A Markdown table; all columns after the first `num_text_columns` are right-aligned."""
    table = [[word.replace("|", r"\|") for word in line] for line in lines]
    widths = [min(WIDEST, max(map(len, column))) for column in zip(*table, strict=True)]
    rule = ["-" * width if place < num_text_columns else f"{'-' * (width - 1)}:" for place, width in enumerate(widths)]
    table = [
        [word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in [table[0], rule, *table[1:]]
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def to_latex(lines: Sequence[Sequence[str]], num_text_columns: int, *, comment: str) -> str:
    """A LaTeX tabular with booktabs rules, after a comment."""
    header, *body = [[escape_latex(word) for word in line] for line in lines]
    columns = "l" * num_text_columns + "r" * (len(header) - num_text_columns)
    text = [f"% {line}" for line in [*comment.splitlines(), r"Requires \usepackage{booktabs}."] if line]
    text += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", f"{' & '.join(header)} \\\\", r"\midrule"]
    text += [f"{' & '.join(line)} \\\\" for line in body]
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
    """Escape special characters, and typeset a minus before digits."""
    text = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def to_csv(records: Sequence[Mapping[str, object]]) -> str:
    """CSV with one line per record and the keys of all records as columns."""
    fields = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def make_cell_records(runs: StudyRuns, rows: Sequence[Row]) -> list[dict[str, object]]:
    """One record per cell, with all numbers of the table in full precision."""
    records = []
    for row in rows:
        record: dict[str, object] = {**row.cell.levels, "seeds": len(row.cell.finished), "of": len(row.cell.runs)}
        for column in runs.columns if row.results else ():
            record |= make_result_columns(column.metric, row.results[column.metric])
            record[f"{column.metric}/clips"] = column.protocol and describe_clips(column.protocol)
            record[f"{column.metric}/protocol"] = column.protocol and column.protocol["hash"]
        records.append(record | row.cost | {"gaps": describe_gaps(row.cell) if row.cell.gaps else None})
    return records


def make_result_columns(metric: str, result: Result) -> dict[str, float | None]:
    """Mean, interval and difference, under the name of the metric."""
    compared, name = result.comparison, f"{metric}/difference"
    record = {metric: result.mean, **record_bounds(metric, result.interval)}
    record |= {name: compared and compared.difference, **record_bounds(name, compared and compared.interval)}
    return record | {f"{metric}/p": compared and compared.p_value, f"{metric}/p_holm": result.adjusted}


def record_bounds(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {f"{name}/ci_low": low, f"{name}/ci_high": high}


def make_run_records(runs: StudyRuns, clip_intervals: Mapping[str, Mapping[str, Interval]]) -> list[dict[str, object]]:
    """One record per run: metrics, their intervals over clips, costs and lineage.

    Args:
        clip_intervals: metric -> run id -> interval from `compute_clip_intervals`.
    """
    records = []
    for cell in runs.cells:
        for seed, run in cell.runs.items():
            record: dict[str, object] = {**cell.levels, "seed": seed}
            if run is None:
                records.append(record | {"outcome": "missing"})
                continue
            for column in runs.columns if run.id in cell.ids() else ():
                record[column.metric] = column.scores[run.id].value
                record |= record_bounds(f"{column.metric}/clips", clip_intervals[column.metric].get(run.id))
            record |= {name: value for name, value in sorted(run.metrics.items()) if name.startswith("cost/")}
            records.append(record | {f"data/{split}": data for split, data in run.data.items()} | record_origin(run))
    return records


def record_origin(run: Run) -> dict[str, str | None]:
    """Lineage of a run: outcome, ids, commit, config and folder."""
    return {
        "outcome": run.outcome,
        "run": run.name,
        "run_id": run.id,
        "commit": run.commit,
        "config": run.config_digest,
        "folder": run.folder,
    }


def format_lineage(runs: StudyRuns) -> str:
    """Markdown table with one row per run: cell, commit, digests of config and data, folder."""
    lines = [["cell", "seed", "outcome", "run", "run id", "commit", "config", "data", "folder"]]
    for cell in runs.cells:
        lines += [[runs.name(cell), seed, *format_origin(run)] for seed, run in cell.runs.items()]
    lines += [["not counted", run.seed, *format_origin(run)] for run in runs.others]
    return to_markdown(lines, len(lines[0]))


def format_origin(run: Run | None) -> list[str]:
    if run is None:
        return ["missing", *[EMPTY] * 6]
    data = ", ".join(f"{split}: {digest}" for split, digest in run.data.items())
    found = record_origin(run) | {"data": data}
    return [found[key] or EMPTY for key in ("outcome", "run", "run_id", "commit", "config", "data", "folder")]

"""The table of a study as Markdown, LaTeX and CSV, and the lineage of its numbers."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clap.run_folder import describe_clips
from clap.study.factors import Repeat
from clap.study.runs import Cell, Run, StudyRuns, shorten_key
from clap.study.scores import Column, Estimate
from clap.study.statistics import Comparison, Interval, holm
from clap.text_table import EMPTY, format_number, shorten, to_markdown

COSTS = {  # shown if logged: name -> heading, divisor, unit
    "cost/parameters": ("parameters", 1e6, " M"),
    "cost/gigaflops_per_clip": ("gigaflops/clip", 1.0, ""),
    "cost/clips_per_second": ("clips/s", 1.0, ""),
    "cost/seconds": ("minutes", 60.0, ""),
    "cost/peak_memory_bytes": ("peak memory", 1e9, " GB"),
    "cost/peak_gpu_memory_bytes": ("peak GPU memory", 1e9, " GB"),
}
SYMMETRIC = 0.0005  # difference of the two sides of an interval that three decimals do not show
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

    estimate: Estimate
    comparison: Comparison | None = None
    adjusted: float | None = None


@dataclass
class Row:
    """One cell: metric -> result, and cost -> mean over runs; both empty without a result."""

    cell: Cell
    results: dict[str, Result]
    cost: dict[str, float]


def make_rows(runs: StudyRuns) -> list[Row]:
    """One row per cell, the baseline first; p values are corrected over all tests of the table."""
    baseline = runs.cells[0]
    rows = [
        Row(cell, {column.metric: summarize_cell(column, cell, baseline) for column in runs.columns}, mean_cost(cell))
        if cell.complete
        else Row(cell, {}, {})
        for cell in runs.cells
    ]
    results = [result for row in rows for result in row.results.values()]
    p_values = [result.comparison.p_value if result.comparison else None for result in results]
    for result, adjusted in zip(results, holm(p_values), strict=True):
        result.adjusted = adjusted
    return rows


def summarize_cell(column: Column, cell: Cell, baseline: Cell) -> Result:
    """The number of a cell, and its difference from the baseline over their common seeds."""
    result = Result(column.estimate(cell.replicates()))
    both = [seed for seed in cell.complete if seed in baseline.complete]
    if both and cell is not baseline:
        result.comparison = column.compare(*(side.replicates(both) for side in (baseline, cell)))
    return result


def mean_cost(cell: Cell) -> dict[str, float]:
    """Mean of each cost metric over the finished runs."""
    costs = defaultdict(list)
    for run in cell.finished:
        for name, value in run.metrics.items():
            if name.startswith("cost/"):
                costs[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(costs.items())}


def format_table(runs: StudyRuns, rows: Sequence[Row]) -> list[list[str]]:
    """The table as rows of strings, the header first: factors, metrics with differences, seeds, costs, chance."""
    costs = [name for name in COSTS if any(name in row.cost for row in rows)]
    deviation, folds = (["SD over folds"], ["folds"]) if runs.has_folds else ([], [])
    metrics = [heading for column in runs.columns for heading in (column.label, *deviation, "to baseline")]
    header = [*map(shorten_key, runs.study.factors), *metrics, "seeds", *folds, *(COSTS[name][0] for name in costs)]
    lines = [header]
    for row in rows:
        cell = row.cell
        if row.results:
            quality = [
                word for found in row.results.values() for word in format_result(found, row is rows[0], *deviation)
            ]
        else:
            quality = [describe_empty(cell), *[EMPTY] * (len(metrics) - 1)]
        counts = [f"{len(cell.complete)}/{len(cell.seeds)}", *(f"{len(cell.finished)}/{len(cell.runs)}" for _ in folds)]
        prices = [format_cost(name, row.cost.get(name)) for name in costs]
        lines.append([*cell.levels.values(), *quality, *counts, *prices])
    if any(column.chance is not None for column in runs.columns):
        levels = [format_number(column.chance) for column in runs.columns]
        quality = [word for level in levels for word in (level, *[EMPTY] * (1 + len(deviation)))]
        lines.append(["chance", *[EMPTY] * (len(runs.study.factors) - 1), *quality])
        lines[-1] += [EMPTY] * (len(header) - len(lines[-1]))
    return lines


def format_result(result: Result, is_baseline: bool, *deviation: str) -> list[str]:
    """`0.456 ± 0.044`, its standard deviation if asked for, and `+0.034 ± 0.052 (p = 0.21)`."""
    words = [format_estimate(result.estimate.mean, result.estimate.interval)]
    words += [format_number(result.estimate.deviation) for _ in deviation]
    if is_baseline or result.comparison is None:
        return [*words, "baseline" if is_baseline else EMPTY]
    difference = result.comparison
    p_value = f" ({format_p(result.adjusted)})" if result.adjusted is not None else ""
    return [*words, f"{format_estimate(difference.difference, difference.interval, '+')}{p_value}"]


def format_estimate(mean: float, interval: Interval | None, sign: str = "") -> str:
    """`0.456 ± 0.044`, or `0.980 (0.930 to 1.000)` for an interval that is not symmetric around the mean."""
    number = format_number(mean, sign)
    if interval is None:
        return number
    if np.isclose(interval.high - mean, mean - interval.low, rtol=1e-6, atol=SYMMETRIC):
        return f"{number} ± {format_number((interval.high - interval.low) / 2)}"
    return f"{number} ({format_interval(interval, sign)})"


def format_interval(interval: Interval | None, sign: str = "") -> str:
    """`0.930 to 1.000`."""
    if interval is None:
        return EMPTY
    return f"{format_number(interval.low, sign)} to {format_number(interval.high, sign)}"


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
    """`3 of 5 seeds; seed 3 failed: no memory; seeds 4, 5 missing`, or `0 of 1 seeds; seed 0, fold 3 missing`."""
    repeats = defaultdict(list)
    for repeat, outcome in cell.gaps.items():
        repeats[outcome].append(repeat)
    parts = [f"{name_repeats(some)} {shorten(outcome, LONGEST_GAP)}" for outcome, some in repeats.items()]
    return "; ".join([f"{len(cell.complete)} of {len(cell.seeds)} seeds", *parts])


def name_repeats(repeats: Sequence[Repeat]) -> str:
    """`seeds 4, 5`, or `seed 0, folds 2, 3 and seed 1, fold 3`."""
    if repeats[0].fold is None:
        return name_several("seed", [repeat.seed for repeat in repeats])
    seeds = dict.fromkeys(repeat.seed for repeat in repeats)
    folds = {seed: [repeat.fold for repeat in repeats if repeat.seed == seed] for seed in seeds}
    return " and ".join(f"seed {seed}, {name_several('fold', own)}" for seed, own in folds.items())


def name_several(what: str, names: Sequence[str]) -> str:
    return f"{what}{'s' * (len(names) > 1)} {', '.join(names)}"


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


def make_cell_records(runs: StudyRuns, rows: Sequence[Row]) -> list[dict[str, object]]:
    """One record per cell, with all numbers of the table in full precision."""
    records = []
    for row in rows:
        cell = row.cell
        record: dict[str, object] = {**cell.levels, "seeds": len(cell.complete), "of": len(cell.seeds)}
        record |= {"folds": len(cell.finished), "of folds": len(cell.runs)} if runs.has_folds else {}
        for column in runs.columns if row.results else ():
            record |= make_result_columns(column.metric, row.results[column.metric])
            record[f"{column.metric}/chance"] = column.chance
            record[f"{column.metric}/clips"] = column.protocol and describe_clips(column.protocol)
            record[f"{column.metric}/protocol"] = column.protocol and column.protocol["hash"]
        records.append(record | row.cost | {"gaps": describe_gaps(cell) if cell.gaps else None})
    return records


def make_result_columns(metric: str, result: Result) -> dict[str, float | None]:
    """Mean, standard deviation, interval and difference, under the name of the metric."""
    compared, name = result.comparison, f"{metric}/difference"
    record = record_estimate(metric, result.estimate)
    record |= {name: compared and compared.difference, **record_bounds(name, compared and compared.interval)}
    return record | {f"{metric}/p": compared and compared.p_value, f"{metric}/p_holm": result.adjusted}


def record_estimate(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """Mean, standard deviation and interval under a name."""
    estimate = estimate or Estimate(None)
    return {name: estimate.mean, f"{name}/sd": estimate.deviation, **record_bounds(name, estimate.interval)}


def record_bounds(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {f"{name}/ci_low": low, f"{name}/ci_high": high}


def make_run_records(runs: StudyRuns, clip_intervals: Mapping[str, Mapping[str, Interval]]) -> list[dict[str, object]]:
    """One record per run: metrics, their intervals over clips, costs and lineage.

    Args:
        clip_intervals: metric -> run id -> interval from `Column.clip_intervals`.
    """
    records = []
    for cell in runs.cells:
        for repeat, run in cell.runs.items():
            record: dict[str, object] = {**cell.levels, "seed": repeat.seed}
            record |= {"fold": repeat.fold} if runs.has_folds else {}
            if run is None:
                records.append(record | {"outcome": "missing"})
                continue
            for column in runs.columns if run in cell.finished else ():
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
    names = ["seed", *["fold"] * runs.has_folds]
    lines = [["cell", *names, "outcome", "run", "run id", "commit", "config", "data", "folder"]]
    for cell in runs.cells:
        lines += [[runs.name(cell), *repeat[: len(names)], *format_origin(run)] for repeat, run in cell.runs.items()]
    lines += [["not counted", *run.repeat[: len(names)], *format_origin(run)] for run in runs.others]
    return to_markdown(lines, len(lines[0]))


def format_origin(run: Run | None) -> list[str]:
    if run is None:
        return ["missing", *[EMPTY] * 6]
    data = ", ".join(f"{split}: {digest}" for split, digest in run.data.items())
    found = record_origin(run) | {"data": data}
    return [found[key] or EMPTY for key in ("outcome", "run", "run_id", "commit", "config", "data", "folder")]

"""The table of a study contains the numbers of the statistics module, in Markdown, LaTeX and CSV."""

import csv
import io

import numpy as np
import pytest
from study_store import LEADING, METRICS, make_runs, make_study

from clap.proportion import Interval, clip_interval
from clap.study.statistics import compare, compare_folds, fold_interval, holm, seed_interval
from clap.study.table import (
    describe_gaps,
    escape_latex,
    format_cost,
    format_estimate,
    format_lineage,
    format_p,
    format_table,
    make_cell_records,
    make_rows,
    make_run_records,
    to_latex,
)
from clap.text_table import format_number, tabulate, to_csv, to_markdown

UNFINISHED = {(1, "1"): "the loss is nan", (1, "2"): "", **{(2, seed): "no memory | none" for seed in "012"}}
UNFINISHED |= {(3, seed): "" for seed in "012"}


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_numbers_are_those_of_the_statistics_module() -> None:
    runs = make_runs(make_study("grid"))
    rows = make_rows(runs)
    for column in runs.columns:
        scores = [column.matrix(cell.replicates()) for cell in runs.cells]
        weights = column.weights(runs.cells[0].replicates()[0])
        results = [row.results[column.metric] for row in rows]
        assert [result.estimate.mean for result in results] == pytest.approx([values.mean() for values in scores])
        assert results[2].estimate.interval == seed_interval(scores[2], weights)
        assert results[2].comparison == compare(scores[0], scores[2], weights)
        assert results[0].comparison is None


def test_all_tests_of_a_table_are_corrected_together() -> None:
    rows = make_rows(make_runs(make_study("grid")))
    results = [result for row in rows[1:] for result in row.results.values()]
    assert len(results) == 6
    assert [result.adjusted for result in results] == holm([result.comparison.p_value for result in results])


def test_two_seeds_have_no_interval_and_no_test() -> None:
    rows = make_rows(make_runs(make_study("grid", seeds=["0", "1"])))
    result = rows[1].results[LEADING]
    assert result.estimate.interval is None and result.adjusted is None
    assert result.comparison.difference == pytest.approx(result.estimate.mean - rows[0].results[LEADING].estimate.mean)


def test_difference_pairs_common_seeds() -> None:
    runs = make_runs(make_study("grid", seeds=["0", "1", "2", "3"]), without={(0, "0"): "", (1, "3"): "no memory"})
    column, (baseline, cell) = runs.columns[0], runs.cells[:2]
    sides = (column.matrix(side.replicates(["1", "2"])) for side in (baseline, cell))
    expected = compare(*sides, column.weights(cell.replicates()[0]))
    assert make_rows(runs)[1].results[LEADING].comparison == expected


def test_missing_baseline_gives_no_difference() -> None:
    runs = make_runs(make_study("grid"), without={(0, seed): "" for seed in "012"})
    lines = format_table(runs, make_rows(runs))
    assert lines[1][2] == "missing" and lines[2][3] == "–"


def test_missing_and_failed_cells_are_marked() -> None:
    runs = make_runs(make_study("grid"), without=UNFINISHED)
    _, *lines = format_table(runs, make_rows(runs))
    assert [line[2].split(":")[0] for line in lines[2:]] == ["failed", "missing"]
    assert [line[6] for line in lines] == ["3/3", "1/3", "0/3", "0/3"]
    assert describe_gaps(runs.cells[1]) == "1 of 3 seeds; seed 1 failed: the loss is nan; seed 2 missing"
    assert describe_gaps(runs.cells[3]) == "0 of 3 seeds; seeds 0, 1, 2 missing"


def test_markdown_escapes_bars_in_an_error() -> None:
    runs = make_runs(make_study("grid"), without=UNFINISHED)
    lines = to_markdown(format_table(runs, make_rows(runs)), 2).replace(r"\|", "").splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_latex_has_a_cell_for_each_column() -> None:
    runs = make_runs(make_study("grid"), without=UNFINISHED)
    lines = format_table(runs, make_rows(runs))
    text = to_latex(lines, 2, comment="All of it.")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(lines) and {row.count(" & ") for row in rows} == {len(lines[0]) - 1}
    assert text.startswith("% All of it.\n") and r"\begin{tabular}{llrrrrrrr}" in text


def test_latex_escapes_special_characters() -> None:
    assert escape_latex("a_b & 5 % {x} \\") == r"a\_b \& 5 \% \{x\} \textbackslash{}"
    assert escape_latex("-0.012 ± 0.1, cnn-14") == r"$-$0.012 $\pm$ 0.1, cnn-14"


def test_csv_has_full_precision() -> None:
    runs = make_runs(make_study("grid"))
    rows = make_rows(runs)
    records = read_csv(to_csv(tabulate(make_cell_records(runs, rows))))
    for record, row in zip(records, rows, strict=True):
        assert float(record[LEADING]) == row.results[LEADING].estimate.mean
        assert float(record[f"{LEADING}/ci_low"]) == row.results[LEADING].estimate.interval.low
        assert float(record["cost/seconds"]) == row.cost["cost/seconds"]
    assert float(records[1][f"{LEADING}/p_holm"]) == rows[1].results[LEADING].adjusted
    assert records[0][f"{LEADING}/protocol"] == runs.columns[0].protocol["hash"]
    assert records[0][f"{LEADING}/clips"] == "20 of 20 clips"


def test_csv_of_runs_has_intervals_over_clips() -> None:
    runs = make_runs(make_study("grid"), without=UNFINISHED)
    within = {column.metric: column.clip_intervals() for column in runs.columns}
    records = read_csv(to_csv(tabulate(make_run_records(runs, within))))
    score = runs.columns[0].scores["id00"]
    expected = clip_interval(score.totals, score.counts)
    assert float(records[0][f"{LEADING}/clips/ci_low"]) == expected.low < float(records[0][LEADING])
    assert [record["outcome"] for record in records[3:6]] == ["finished", "failed: the loss is nan", "missing"]


def test_lineage_lists_every_run() -> None:
    runs = make_runs(make_study("grid"), without=UNFINISHED)
    lines = format_lineage(runs).splitlines()[2:]
    assert len(lines) == 12
    for run in runs.finished:
        (line,) = [line for line in lines if run.id in line]
        assert run.commit in line and run.config_digest in line and run.name in line


def test_metric_without_per_clip_values_is_compared_over_seeds() -> None:
    metric = "test/synthetic/text_to_audio/median_rank"
    runs = make_runs(make_study("rank", metrics=[LEADING, metric]))
    column = runs.columns[1]
    baseline, other = (np.array([column.value(own) for own in cell.replicates()]) for cell in runs.cells[:2])
    assert make_rows(runs)[1].results[metric].comparison == compare(baseline, other)
    assert column.clip_intervals() == {}


def test_header_has_every_metric_and_cost() -> None:
    runs = make_runs(make_study("grid", factors={"dataset.batch_size": ["16", "32"]}, metrics=METRICS))
    header = format_table(runs, make_rows(runs))[0]
    assert header == [
        "batch_size", "text-to-audio recall@1", "to baseline", "audio-to-text mAP@10", "to baseline", "seeds",
        "parameters", "minutes",
    ]  # fmt: skip


def test_numbers_of_tests_and_costs_are_rounded() -> None:
    assert [format_p(value) for value in (0.0004, 0.0123, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]
    assert format_cost("cost/parameters", 2_012_585) == "2.01 M"
    assert format_cost("cost/seconds", 750) == "12.5"
    assert format_cost("cost/clips_per_second", None) == "–"


FOLDS = {"folds": ["1", "2", "3", "4"], "seeds": ["0"]}


def test_cross_validation_has_one_number_for_all_folds() -> None:
    runs = make_runs(make_study("folds", **FOLDS))
    rows, column = make_rows(runs), runs.columns[0]
    values = [[column.scores[f"id{place}0{fold}"].value for fold in "1234"] for place in range(4)]
    for row, own in zip(rows, values, strict=True):
        assert row.results[LEADING].estimate.mean == pytest.approx(np.mean(own))
        assert row.results[LEADING].estimate.interval == fold_interval(own)
    assert rows[2].results[LEADING].comparison == compare_folds(values[0], values[2])
    header, first, *_ = format_table(runs, rows)
    assert header[2:5] == ["text-to-audio recall@1", "SD over folds", "to baseline"]
    assert first[header.index("seeds") :][:2] == ["1/1", "4/4"] and first[3] == format_number(np.std(values[0], ddof=1))
    (record, *_) = read_csv(to_csv(tabulate(make_cell_records(runs, rows))))
    assert (record["folds"], record["of folds"]) == ("4", "4")
    assert float(record[f"{LEADING}/sd"]) == pytest.approx(np.std(values[0], ddof=1))


def test_missing_fold_leaves_its_seed_without_a_number() -> None:
    without = {(0, "3"): "no memory", (1, "1"): "", (1, "2"): ""}
    runs = make_runs(make_study("folds", **FOLDS), without=without)
    rows = make_rows(runs)
    assert [bool(row.results) for row in rows] == [False, False, True, True]
    assert rows[2].results[LEADING].comparison is None
    assert describe_gaps(runs.cells[0]) == "0 of 1 seeds; seed 0, fold 3 failed: no memory"
    assert describe_gaps(runs.cells[1]) == "0 of 1 seeds; seed 0, folds 1, 2 missing"
    lines = format_table(runs, rows)
    assert lines[1][2] == "failed" and lines[1][lines[0].index("folds")] == "3/4"


def test_lineage_of_a_cross_validation_has_the_folds() -> None:
    runs = make_runs(make_study("folds", **FOLDS))
    header, _, first, *others = format_lineage(runs).splitlines()
    assert [cell.strip() for cell in header.split("|")[2:4]] == ["seed", "fold"] and len(others) == 15
    assert [cell.strip() for cell in first.split("|")[2:4]] == ["0", "1"]
    records = read_csv(
        to_csv(tabulate(make_run_records(runs, {column.metric: column.clip_intervals() for column in runs.columns})))
    )
    assert [record["fold"] for record in records[:5]] == ["1", "2", "3", "4", "1"]


def test_last_row_is_the_chance_level() -> None:
    runs = make_runs(make_study("grid"), chance=0.05)
    lines = format_table(runs, make_rows(runs))
    assert lines[-1][:6] == ["chance", "–", "0.050", "–", "–", "–"] and {len(line) for line in lines} == {len(lines[0])}
    (record, *_) = read_csv(to_csv(tabulate(make_cell_records(runs, make_rows(runs)))))
    assert float(record[f"{LEADING}/chance"]) == 0.05


def test_interval_that_is_cut_is_shown_by_its_ends() -> None:
    assert format_estimate(0.98, Interval(0.93, 1.0)) == "0.980 (0.930 to 1.000)"
    assert format_estimate(0.98, Interval(0.9601, 1.0)) == "0.980 ± 0.020"
    assert format_estimate(-0.98, Interval(-1.0, -0.93), "+") == "-0.980 (-1.000 to -0.930)"
    assert format_estimate(0.5, None) == "0.500"
    assert escape_latex("0.980 (0.930 to 1.000)") == "0.980 (0.930 to 1.000)"

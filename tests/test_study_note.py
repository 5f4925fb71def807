"""The note of a study: the block that a report replaces, and its description of the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
from study_store import LEADING, make_runs, make_study

from clap.study.factors import read_question
from clap.study.note import BEGIN, END, format_command, make_block, make_note, replace_block, wrap_lines
from clap.study.runs import StudyRuns
from clap.study.table import make_rows

NOTE = Path("experiments/grid.md")


def write_block(runs: StudyRuns) -> str:
    within = {column.metric: column.clip_intervals() for column in runs.columns}
    return make_block(runs, make_rows(runs), within, ["main_effects"])


def as_line(text: str) -> str:
    return " ".join(text.split())


def test_only_the_report_block_is_replaced() -> None:
    note = f"# Mine\u2028too\n\n{BEGIN}\nold\n{END}\n\n**Answer.** Yes.\n"
    assert replace_block(note, f"{BEGIN}\nnew\n{END}", NOTE) == note.replace("old", "new")


@pytest.mark.parametrize("note", ["# Mine\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_note_without_a_report_block_is_rejected(note: str) -> None:
    with pytest.raises(
        ValueError, match=f"{NOTE} does not have exactly one line {BEGIN} and one line {END} below it; add"
    ):
        replace_block(note, "new", NOTE)


def test_new_note_contains_the_report_block() -> None:
    runs = make_runs(make_study("grid"))
    block = write_block(runs)
    note = make_note(runs, block, "Which one?")
    assert "**Question.** Which one?" in note and "**Answer.** *To be written" in note
    assert replace_block(note, block, NOTE) == note


def test_question_is_the_comment_above_the_command(tmp_path: Path) -> None:
    yaml = tmp_path / "study.yaml"
    yaml.write_text("# @package _global_\n# Which one?\n# Of all.\n#   python train.py\n# More.\nstudy:\n")
    assert read_question(yaml) == "Which one? Of all."


def test_command_omits_local_paths() -> None:
    runs = make_runs(make_study("grid", seeds=["0"]))
    runs.fixed |= {"experiment": "grid", "tracking.uri": "/tmp/x.db", "dataset.root": "/data/x", "embed_dim": "64"}
    assert format_command(runs) == "python train.py -m experiment=grid dataset.root=FOLDER embed_dim=64"


def test_both_kinds_of_uncertainty_are_named() -> None:
    text = as_line(write_block(make_runs(make_study("grid"))))
    assert "Student's t over seeds, widened by the variance between clips" in text
    assert "p is two-sided and Holm-corrected over the 6 tests of this table" in text
    assert (
        "Uncertainty within a run from the choice of clips (95 %, bootstrap over clips with all their captions" in text
    )


def test_two_seeds_are_reported_without_interval() -> None:
    text = as_line(write_block(make_runs(make_study("grid", seeds=["0", "1"]))))
    assert "Cells with fewer than 3 seeds have no interval and no test." in text
    assert "Student's t" not in text and "Error bars are" not in text


def test_missing_baseline_is_reported() -> None:
    runs = make_runs(make_study("grid"), without={(0, seed): "no memory" for seed in "012"})
    text = write_block(runs)
    assert "The baseline, the first row, has no finished run" in as_line(text)
    assert "- cnn14_nano, roberta_nano: 0 of 3 seeds; seeds 0, 1, 2 failed: no memory" in text


def test_protocol_commit_and_links_are_shown() -> None:
    runs = make_runs(make_study("grid"))
    text = as_line(write_block(runs))
    assert f"Protocol `{runs.columns[0].protocol['hash']}`" in text and "20 of 20 clips" in text
    assert "sweep `sweepid`, commit `0123456789ab`. Run on 2 CPU cores, torch 2.11.0." in text
    assert "[lineage](grid/lineage.md)" in text and "![Main effects](grid/main_effects.png)" in text


def test_protocol_of_an_earlier_version_is_named_as_such() -> None:
    runs = make_runs(make_study("ablation"))
    assert "definition 1." in as_line(write_block(runs))
    for column in runs.columns:
        column.protocol.pop("audio_manifest", None)  # shared by the columns
        column.protocol["code_version"] = "0.1.0"
    assert "recorded by an earlier version, clap 0.1.0." in as_line(write_block(runs))


def test_commits_of_all_parts_of_the_runs_are_shown() -> None:
    runs = make_runs(make_study("grid"))
    first = runs.finished[0]
    resumed = replace(first, commit=f"{first.commit}, then {'f' * 40}-dirty")
    for cell in runs.cells:
        cell.runs = {seed: resumed if run is first else run for seed, run in cell.runs.items()}
    text = as_line(write_block(runs))
    assert "commits `0123456789ab, then ffffffffffff-dirty`, `0123456789ab`. The code changed between or in" in text


def test_runs_of_a_cell_on_other_data_are_reported() -> None:
    runs = make_runs(make_study("grid"))
    assert "more than the seed" not in as_line(write_block(runs))
    cell = runs.cells[1]
    first = cell.finished[0]
    cell.runs = cell.runs | {first.repeat: replace(first, data={**first.data, "train": "csv 0123"})}
    found = f"differ in more than the seed, see `config` and `data` in the lineage: {runs.name(cell)}. "
    assert found in as_line(write_block(runs))


def test_missing_clips_are_reported() -> None:
    runs = make_runs(make_study("grid"))
    for column in runs.columns:
        column.protocol |= {"clips": "18 of 20", "published_clips": 25}
    assert "test split, 18 of 20 clips (25 published)" in as_line(write_block(runs))


def test_metric_without_per_clip_values_is_described() -> None:
    runs = make_runs(make_study("rank", metrics=[LEADING, "test/synthetic/text_to_audio/median_rank"]))
    assert "For text-to-audio median rank, which is not a mean over clips, it is over seeds only" in as_line(
        write_block(runs)
    )


def test_wrapped_lines_do_not_break_code_and_links() -> None:
    text = wrap_lines("word " * 24 + "`python train.py -m experiment=grid` and [all numbers](a.csv) " + "word " * 20)
    assert "`python train.py -m experiment=grid`" in text and "[all numbers](a.csv)" in text
    assert max(map(len, text.splitlines())) <= 130


def test_cross_validation_is_described() -> None:
    runs = make_runs(make_study("folds", folds=["1", "2", "3"], seeds=["0"]))
    text = as_line(write_block(runs))
    assert "Cross-validation over 3 folds: the number of a seed is the unweighted mean over its folds" in text
    assert "Nadeau & Bengio (2003)" in text and "Student's t over seeds" not in text
    assert "are paired by seed and clip, and with fewer than 3 seeds by fold; p is two-sided" in text
    assert "60 of 60 clips, each tested once in the folds 1, 2, 3, definition 1." in text
    assert "Cells with fewer than" not in text


def test_protocol_with_folds_of_its_own_is_described() -> None:
    """A linear probe chooses its regularisation in folds of the training clips."""
    runs = make_runs(make_study("grid"))
    for column in runs.columns:
        column.protocol["folds"] = 5
    assert "20 of 20 clips, definition 1." in as_line(write_block(runs))


def test_runs_of_other_folds_may_have_other_data() -> None:
    runs = make_runs(make_study("folds", folds=["1", "2", "3"], seeds=["0"]))
    cell = runs.cells[0]
    cell.runs = {key: replace(run, data={"test": f"fold {key.fold}"}) for key, run in cell.runs.items()}
    assert "differ in more than" not in as_line(write_block(runs))


def test_study_at_chance_says_so() -> None:
    at_chance = make_runs(make_study("grid"), quality=0.04, gap=0.0, chance=0.1)
    assert (
        "**No configuration is above chance in text-to-audio recall@1: every 95 % interval begins at or below the "
        "chance level of 0.100, so this metric ranks nothing.**"
    ) in as_line(write_block(at_chance))
    assert "above chance" not in as_line(write_block(make_runs(make_study("grid"), chance=0.1)))


def test_cut_intervals_are_described() -> None:
    perfect = make_runs(make_study("grid"), quality=0.985, gap=0.0)
    text = as_line(write_block(perfect))
    assert "Intervals of proportions end at 0 and 1" in text and " to 1.000)" in text
    assert "Intervals of proportions" not in as_line(write_block(make_runs(make_study("grid"))))

"""Descriptions of runs as Markdown."""

from pathlib import Path

from clap.tracking.description import MAX_LENGTH, describe, describe_error, format_metrics, shorten_table


def test_description_has_result_command_and_folder():
    text = describe("Trains it.", command=["python", "train.py", "a=[1, 2]"], folder=Path("out"), result="| m |")
    assert text == "Trains it.\n\n| m |\n\n    python train.py 'a=[1, 2]'\n\nFolder: `out`"
    assert describe_error(text, "no data").endswith("Folder: `out`\n\n**Error**: no data")


def test_table_has_test_metrics_with_chance():
    metrics = {"val/x/recall_at_1": 0.5, "test/x/recall_at_1": 0.25, "test/x/median_rank": 3}
    assert format_metrics(metrics, {"test/x/recall_at_1": 0.125}).splitlines()[2:] == [
        "| test/x/recall_at_1 | 0.2500 | 0.1250 |",
        "| test/x/median_rank | 3.0000 | –      |",
    ]
    assert format_metrics({}, {}) == ""


def test_long_table_loses_whole_rows_and_keeps_the_command():
    rows = [f"| job {number:03} | 0.1 |" for number in range(1000)]
    text = describe("A sweep.", command=["python", "train.py"], folder=Path("out"), result="\n".join(rows))
    kept = [line for line in text.splitlines() if line.startswith("| job")]
    assert len(text) <= MAX_LENGTH and kept == rows[: len(kept)] and "    python train.py" in text
    assert f"{1000 - len(kept)} more rows" in text


def test_long_table_keeps_chance_levels_and_warnings():
    tables = [
        "\n".join([f"| {name} |", "| --- |", *(f"| {name} {row:03} |" for row in range(300)), "| chance | 0.1 |"])
        for name in ("mean", "job")
    ]
    text = shorten_table(f"{tables[0]}\n\nNo configuration is above chance.\n\n{tables[1]}", 4000)
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| ") and line[-5:-2].isdigit()]
    assert lines.count("| chance | 0.1 |") == 2 and "No configuration is above chance." in lines
    assert len(text) <= 4000 and rows[0] == "| mean 000 |" and f"{600 - len(rows)} more rows" in text

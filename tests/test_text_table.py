"""Markdown and CSV of tables, and the texts of their cells."""

from clap.text_table import format_minutes, format_number, shorten, tabulate, to_csv, to_markdown


def test_numbers_are_right_aligned_after_the_text_columns():
    text = to_markdown([["job", "accuracy"], ["a", "0.5"]], 1)
    assert text == "| job | accuracy |\n| --- | -------: |\n| a   | 0.5      |\n"


def test_cell_is_on_one_line_without_a_bare_bar():
    assert to_markdown([["job"], ["a|b\nc"]]).splitlines()[2] == r"| a\|b c |"


def test_records_have_a_column_for_each_key_of_any():
    assert to_csv(tabulate([{"a": 1}, {"b": None, "c": "x,y"}])) == 'a,b,c\n1,,\n,,"x,y"\n'


def test_columns_can_be_chosen():
    assert tabulate([{"a": 1, "b": 2}], ["b"]) == [["b"], [2]]


def test_numbers_have_three_decimals_and_large_ones_one():
    assert [format_number(value, "+") for value in (0.12345, -1e-18, 123.45)] == ["+0.123", "+0.000", "+123.5"]


def test_a_missing_number_is_a_dash():
    assert [format_number(None), format_minutes(None), format_minutes(90)] == ["–", "–", "1.5"]


def test_long_text_is_cut_to_its_width():
    assert [shorten("a clip", 6), shorten("a clip of rain", 8)] == ["a clip", "a clip…"]

"""Progress bars are for terminals."""

import io
import logging
import sys

import pytest

from clap.progress import log_above_bars, progress_bar


@pytest.mark.parametrize(("is_terminal", "hidden"), [(True, False), (True, True), (False, False)])
def test_bar_is_shown_on_a_terminal_unless_hidden(is_terminal: bool, hidden: bool, monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar(range(3), desc="clips", hidden=hidden)) == [0, 1, 2]
    assert ("clips" in stream.getvalue()) is (is_terminal and not hidden)


def test_log_line_is_printed_above_a_bar(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(stream)])
    with log_above_bars(), progress_bar(total=2, desc="clips") as bar:
        logging.getLogger("clap").warning("skipped")
        bar.update()
    text = stream.getvalue()
    assert "\rskipped\n" in text.replace(" ", "") and text.index("skipped") < text.rindex("clips")


def test_log_that_goes_to_no_console_stays_so(monkeypatch: pytest.MonkeyPatch, tmp_path):
    handler = logging.FileHandler(tmp_path / "log")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with log_above_bars():
        assert logging.getLogger().handlers == [handler]

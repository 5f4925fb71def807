"""Progress bars are for terminals."""

import io
import sys

import pytest

from clap.progress import progress_bar


@pytest.mark.parametrize(("is_terminal", "hidden"), [(True, False), (True, True), (False, False)])
def test_bar_is_shown_on_a_terminal_unless_hidden(is_terminal: bool, hidden: bool, monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar(range(3), desc="clips", hidden=hidden)) == [0, 1, 2]
    assert ("clips" in stream.getvalue()) is (is_terminal and not hidden)

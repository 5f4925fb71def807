"""The form of log lines."""

import logging
import warnings

import pytest

from clap.log_lines import LineFormatter, align_columns, align_rows, format_duration, log_warnings, route_libraries


def test_each_line_of_a_message_begins_alike():
    record = logging.makeLogRecord({"msg": "%s", "args": ("one\ntwo",), "levelno": logging.INFO, "levelname": "INFO"})
    assert LineFormatter("12:00 %(message)s").format(record) == "12:00 one\n12:00 two"
    record.levelno, record.levelname = logging.WARNING, "WARNING"
    assert LineFormatter("12:00 %(message)s", job="s0").format(record).splitlines()[1] == "12:00 [s0] WARNING: two"


def test_traceback_of_a_record_is_kept(caplog: pytest.LogCaptureFixture):
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("clap").exception("failed")
    (record,) = caplog.records
    lines = LineFormatter("at noon %(message)s").format(record).splitlines()
    assert lines[0] == "at noon ERROR: failed" and lines[-1] == "at noon ERROR: ValueError: wrong"
    assert all(line.startswith("at noon ERROR: ") for line in lines)


def test_warning_of_a_library_is_one_log_line(caplog: pytest.LogCaptureFixture):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with log_warnings():
            warnings.warn("two\n  lines", UserWarning, stacklevel=1)
    (record,) = caplog.records
    assert record.getMessage().startswith("two lines (UserWarning, ") and record.levelno == logging.WARNING


def test_lines_of_a_library_go_where_the_others_go(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    logger = logging.getLogger("mlflow")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logger, "propagate", False)
    logger.warning("lost")
    monkeypatch.setattr("clap.log_lines.LIBRARIES", ("mlflow",))
    route_libraries()
    logger.warning("found")
    assert [record.getMessage() for record in caplog.records] == ["found"]


def test_rows_and_columns_are_aligned():
    assert align_rows({"run": "a", "device": "b"}) == "run     a\ndevice  b"
    table = align_columns([("metric", "value", "clips"), ("a", "0.5", "8")], numbers=(1,))
    assert table == "metric  value  clips\na         0.5  8"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.64, "0.64 s"),
        (42.2, "42 s"),
        (99.6, "2 min"),
        (3599, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (190800, "2 d 5 h"),
    ],
)
def test_duration_has_two_units_at_most(seconds: float, text: str):
    assert format_duration(seconds) == text

"""The folder that a check writes: report, figure, findings and block list."""

from collections.abc import Sequence
from pathlib import Path

from clap.atomic import write_atomic
from clap.check.figure import plot_report
from clap.check.report import Report
from clap.dataset.exclude import write_exclusions


def write_outputs(report: Report, folder: Path, *, block: Sequence[str]) -> int:
    """Write report.md, report.png, findings.csv and exclude.txt; returns the number of clips on the block list.

    Args:
        block: kinds of overlap that put a training clip on the block list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.md", report.to_markdown().encode(errors="backslashreplace"))
    report.write_csv(folder / "findings.csv")
    plot_report(report, folder / "report.png")
    blocked = report.find_blocked_clips(block)
    comment = f"training clips of {report.name} that share {' or '.join(block)} with an evaluation split"
    if uncompared := report.find_uncompared(block):
        comment += f"; not compared: {', '.join(uncompared)}"
    write_exclusions(folder / "exclude.txt", blocked, comment=comment)
    return len(blocked)

"""The note of a study: what stands between `<!-- report -->` and `<!-- /report -->`, and a skeleton around it."""

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from clap.config.values import LOCAL_KEYS
from clap.run_folder import describe_clips
from clap.study.figures import describe_figure
from clap.study.runs import StudyRuns
from clap.study.scores import Column
from clap.study.statistics import MIN_SEEDS, Interval
from clap.study.table import Row, describe_gaps, format_number, format_table, to_markdown

BEGIN, END = "<!-- report -->", "<!-- /report -->"
WIDTH = 130  # of a line
OMITTED_KEYS = ("experiment", *LOCAL_KEYS)  # in the command that repeats a study; but for the root, shown as FOLDER
COMMIT_LENGTH = 12
NOTE = """\
# {name}

{question}

{command}

**Result.**

{block}

**Answer.** *To be written: what the intervals and tests above allow to say, and what they leave open.*
"""


def make_note(runs: StudyRuns, block: str, question: str) -> str:
    """A note that waits for its answer."""
    command = f"**Command.** `{format_command(runs)}`, then `python experiments/report.py {runs.study.name}`."
    question = wrap_lines(f"**Question.** {question or '*To be written.*'}")
    return NOTE.format(name=runs.study.name, question=question, command=wrap_lines(command), block=block)


def replace_block(note: str, block: str, path: Path) -> str:
    """The note with another report in place of its own.

    Raises:
        ValueError: the note has no place for one.
    """
    lines = note.splitlines()
    marks = [line.strip() for line in lines]
    if marks.count(BEGIN) != 1 or marks.count(END) != 1 or marks.index(BEGIN) > marks.index(END):
        raise ValueError(f"{path} needs one line {BEGIN} and one line {END} below it, where the report shall stand")
    return "\n".join([*lines[: marks.index(BEGIN)], block, *lines[marks.index(END) + 1 :]]) + "\n"


def read_question(yaml: Path) -> str:
    """What a study's yaml says of itself: the comment above its command."""
    words = []
    for line in yaml.read_text().splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        words += [] if line.startswith("# @package") else [line.removeprefix("# ")]
    return " ".join(words)


def format_command(runs: StudyRuns) -> str:
    """What ran the study, without what only says where."""
    kept = {key: value for key, value in runs.fixed.items() if key not in OMITTED_KEYS or key == "dataset.root"}
    words = [f"{key}={'FOLDER' if Path(value).is_absolute() else value}" for key, value in kept.items()]
    return " ".join([f"python train.py -m experiment={runs.study.name}", *words])


def make_block(
    runs: StudyRuns, rows: Sequence[Row], clip_intervals: Mapping[str, Mapping[str, Interval]], figures: Sequence[str]
) -> str:
    """Table, legend, figures and origin, between the two lines.

    Args:
        clip_intervals: metric -> run id -> interval over clips.
        figures: names of the files beside the note.
    """
    name = runs.study.name
    parts = [
        f"{BEGIN}\n<!-- from here to the end of the report: written by `python experiments/report.py {name}` -->",
        to_markdown(format_table(runs, rows), len(runs.study.factors)).rstrip(),
        describe_missing(runs),
        wrap_lines(describe_numbers(runs, rows)),
        wrap_lines(describe_tests(rows)),
        wrap_lines(describe_clip_intervals(runs, clip_intervals)),
        *(wrap_lines(describe_protocol(columns)) for columns in group_by_protocol(runs.columns)),
        *(format_figure(figure, runs) for figure in figures),
        wrap_lines(describe_origin(runs)),
    ]
    return "\n\n".join(part for part in parts if part) + f"\n\n{END}"


def describe_missing(runs: StudyRuns) -> str:
    """A list of the cells that lack a run."""
    lines = [f"- {runs.name(cell)}: {describe_gaps(cell)}" for cell in runs.cells if cell.gaps]
    if runs.others:
        lines.append(f"- not counted, see the lineage: {format_count(len(runs.others), 'run')} of the sweep")
    return "\n".join(["Not complete:", "", *lines]) if lines else ""


def describe_numbers(runs: StudyRuns, rows: Sequence[Row]) -> str:
    """What the table's means and intervals are."""
    text = "Means over seeds."
    if any(result.interval for row in rows for result in row.results.values()):
        text += (
            " Behind ± is half of the 95 % interval for new training runs on new clips: Student's t over seeds, "
            "widened by the variance between clips."
        )
    if names := ", ".join(column.label for column in runs.columns if column.counts is None):
        text += f" For {names}, which has no value a clip, it is over seeds alone and holds for these clips only."
    return text + (
        " Minutes and clips/s are of training, memory is the peak of the training process, gigaflops are of one clip "
        "as long as the window and its caption forward."
    )


def describe_tests(rows: Sequence[Row]) -> str:
    """How many tests there are, and why others are not."""
    tests = sum(result.adjusted is not None for row in rows for result in row.results.values())
    text = "Differences to the baseline, the first row, are paired seed by seed and clip by clip"
    corrected = f", p is two-sided and Holm-corrected over the {format_count(tests, 'test')} of this table"
    text += f"{corrected if tests else ''}."
    if not rows[0].results:
        text = "The baseline, the first row, has no finished run, so that there is no difference to it."
    if any(0 < len(row.cell.finished) < MIN_SEEDS for row in rows):
        text += f" Fewer than {MIN_SEEDS} seeds show no interval and no test."
    if len({tuple(row.cell.finished) for row in rows if row.results}) > 1:
        text += " A difference is over the seeds that both rows have."
    return text


def describe_clip_intervals(runs: StudyRuns, clip_intervals: Mapping[str, Mapping[str, Interval]]) -> str:
    """How far clips alone move a run's number."""
    parts = []
    for column in runs.columns:
        halves = [(interval.high - interval.low) / 2 for interval in clip_intervals[column.metric].values()]
        parts += [f"{column.label} ± {format_number(statistics.median(halves))}"] if halves else []
    if not parts:
        return ""
    return (
        f"Within a run, other clips would move a number by (95 %, clips resampled with all their captions, median over "
        f"{format_count(len(runs.finished), 'run')}): {', '.join(parts)}. This says nothing of other seeds and tests "
        f"nothing; [runs.csv]({runs.study.name}/runs.csv) has the interval of every run."
    )


def group_by_protocol(columns: Sequence[Column]) -> list[list[Column]]:
    """Columns that share a protocol, together."""
    hashes = list(dict.fromkeys(column.protocol["hash"] for column in columns if column.protocol))
    return [[column for column in columns if column.protocol and column.protocol["hash"] == one] for one in hashes]


def describe_protocol(columns: Sequence[Column]) -> str:
    """The data and definitions behind some columns, in short."""
    protocol = columns[0].protocol
    return (
        f"Protocol `{protocol['hash']}` ({', '.join(column.label for column in columns)}): {protocol['dataset']}, "
        f"{protocol['split']} split, {describe_clips(protocol)}, clap {protocol['code_version']}."
    )


def format_figure(name: str, runs: StudyRuns) -> str:
    text = describe_figure(name, runs)
    return f"![{text.split(':')[0]}]({runs.study.name}/{name}.png)\n\n{wrap_lines(text)}"


def describe_origin(runs: StudyRuns) -> str:
    """Sweep, commits, and where every number leads."""
    commits = list(dict.fromkeys(shorten_commit(run.commit) for run in runs.finished))
    mixed = [runs.name(cell) for cell in runs.cells if len({run.config_digest for run in cell.finished.values()}) > 1]
    text = f"`{format_command(runs)}`, sweep `{runs.sweep_id}`, commit{'s' * (len(commits) > 1)} {', '.join(commits)}. "
    if mixed:
        text += f"Runs of one cell differ in more than the seed, see config in the lineage: {'; '.join(mixed)}. "
    machines = dict.fromkeys(run.machine for run in runs.finished if run.machine)
    text += f"Run on {'; '.join(machines)}. " if machines else ""
    links = {"lineage": "lineage.md", "all numbers": "table.csv", "LaTeX": "table.tex", "protocols": "protocols.json"}
    return text + ", ".join(f"[{words}]({runs.study.name}/{file})" for words, file in links.items()) + "."


def format_count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def shorten_commit(commit: str | None) -> str:
    """`0123456789ab`, with what follows a dash kept; words where a run has none."""
    if commit is None:
        return "unknown"
    name, dash, rest = commit.partition("-")
    return f"`{name[:COMMIT_LENGTH]}{dash}{rest}`"


def wrap_lines(text: str) -> str:
    """Text in lines of at most WIDTH characters; code and links stay whole."""
    text = re.sub(r"`[^`]*`|\[[^]]*\]\(", lambda found: found[0].replace(" ", "\0"), text)
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ")

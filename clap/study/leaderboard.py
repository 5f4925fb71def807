"""The leaderboard of a sweep: the results of its jobs, best first."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clap.atomic import read_json
from clap.evaluation.metric_names import lower_is_better
from clap.run_folder import COST, METRICS, PROTOCOL, read_chance, read_counts
from clap.study.factors import FOLD
from clap.study.job import THEN, Job, shorten_commit
from clap.text_table import EMPTY, format_minutes, format_number, tabulate, to_csv, to_markdown

COSTS = ("seconds", "clips_per_second", "peak_memory_bytes", "parameters")
VALIDATION = "best validation"  # column with the value that a search maximizes
DEFAULT_METRICS = (  # last parts of the first metrics in the table, unless a study sets its own
    "zero_shot/accuracy",
    "text_to_audio/recall_at_1",
    "text_to_audio/recall_at_10",
    "audio_to_text/recall_at_1",
)


class Leaderboard:
    """The jobs of a sweep sorted by the leading metric, ties by name, jobs without a result last.

    Args:
        metrics: columns of the Markdown table, the leading one first (default: see `choose_metrics`).
        by_validation: sort by the best validation of each job, a further column: the best job of a search is not the
            one with the most luck on the test split.

    Attributes:
        chance: metric -> the chance levels of the jobs, of metrics in the table that have one.
        counts: names of clip counts, of the splits where some job did not use all clips.
    """

    def __init__(self, jobs: Sequence[Job], metrics: Sequence[str] = (), *, by_validation: bool = False) -> None:
        quality = [{} if job.problem else read_json(job.folder / METRICS) for job in jobs]
        names = sorted({name for values in quality for name in values})
        split = "test/" if any(name.startswith("test/") for name in names) else ""
        known = [name for name in names if name.startswith(split)]
        self.metrics = list(metrics) or choose_metrics([name for values in quality for name in values if name in known])
        counts = [{} if job.problem else read_counts(job.folder) for job in jobs]
        counted = sorted({name for own in counts for name in own if name.startswith(split)})
        self.counts = [name for name in counted if not all(uses_all_clips(own.get(name)) for own in counts)]
        chances = [{} if job.problem else read_chance(job.folder) for job in jobs]
        levels = {name: [own[name] for own in chances if name in own] for name in self.metrics}
        self.chance = {name: found for name, found in levels.items() if found}
        self.leading = [VALIDATION] if by_validation else self.metrics[:1]
        self.has_folds = len({job.config.get(FOLD) for job in jobs}) > 1
        self.rows = []
        for job, values, own, chance in zip(jobs, quality, counts, chances, strict=True):
            cost = read_json(job.folder / COST)
            row = {"job": job.name, "status": job.status}
            row |= {VALIDATION: None if job.problem else job.value} if by_validation else {}
            row |= {name: values.get(name) for name in [*self.metrics, *known]}
            row |= {f"{name}/chance": chance.get(name) for name in self.chance}
            row |= {name: own.get(name) for name in counted}
            row |= {name: cost.get(name) for name in COSTS}
            row |= {"protocol": "" if job.problem else list_protocols(job.folder, split)}
            row |= {"commit": shorten_commit(THEN.join(job.commits))}
            self.rows.append(row | {"problem": job.problem, "folder": job.folder.name})
        finished = [(job, row) for job, row in zip(jobs, self.rows, strict=True) if not job.problem]
        protocols = {(job.config.get(FOLD), row["protocol"]) for job, row in finished}
        self.differs_in_protocol = len(protocols) > len({fold for fold, _ in protocols})  # folds differ in their clips
        self.rows.sort(key=self.rank)

    def rank(self, row: Mapping[str, Any]) -> tuple[float, str]:
        return rank_value(row[self.leading[0]], self.leading[0]) if self.leading else math.inf, row["job"]

    def best(self) -> dict[str, float]:
        """The metrics of the best job in the table as metrics of the parent run, `best/<metric>`.

        Empty with several folds, which are parts of one number: the job of the easiest one would be the best.
        """
        row = self.rows[0] if self.rows and not self.has_folds else {}
        return {f"best/{metric}": row[metric] for metric in self.metrics if row.get(metric) is not None}

    def summary(self) -> str:
        """The best job and its leading metric in one line, and the table."""
        value = self.rows[0][self.leading[0]] if self.rows and self.leading and not self.has_folds else None
        score = f" ({format_heading(self.leading[0])} {format_number(value)})" if value is not None else ""
        return f"Best: {self.rows[0]['job']}{score}.\n\n{self.markdown()}" if score else self.markdown()

    def csv(self) -> str:
        """All test metrics, cost, problem and folder of each job."""
        return to_csv(tabulate(self.rows, None if self.rows else ["job"]))

    def markdown(self, *, longest: int | None = None) -> str:
        """A table of jobs, of at most `longest`, and the chance level.

        It has metrics, minutes, protocols and commits if they differ, and why a job has no result.
        """
        commits = {row["commit"] for row in self.rows if not row["problem"]}
        extra = ["protocol"] if self.differs_in_protocol else []
        extra += ["commit"] if len(commits) > 1 or any(THEN in commit for commit in commits) else []
        extra += ["problem"] if any(row["problem"] for row in self.rows) else []
        metrics = list(dict.fromkeys([*self.leading, *self.metrics]))
        table = [["job", *(format_heading(name) for name in [*metrics, *self.counts]), "minutes", *extra]]
        for row in self.rows[:longest]:
            numbers = [format_number(row[name]) for name in metrics]
            numbers += [*(row[name] or EMPTY for name in self.counts), format_minutes(row["seconds"])]
            table.append([row["job"], *numbers, *(row[name] or "" for name in extra)])
        if self.chance:
            levels = [format_range(self.chance.get(name, [])) for name in metrics]
            table.append(["chance", *levels, *[EMPTY] * (len(self.counts) + 1), *["" for _ in extra]])
        return to_markdown(table) + describe_cut(self.rows, longest)


def rank_value(value: float | None, metric: str) -> float:
    """A number that sorts values of a metric, the best first and those without a number last."""
    if value is None or math.isnan(value):
        return math.inf
    return value if lower_is_better(metric) else -value


def describe_cut(rows: Sequence[Any], longest: int | None) -> str:
    """A line that counts the rows below the first `longest` of a table."""
    rest = 0 if longest is None else len(rows) - longest
    return f"and {rest} more in the csv\n" if rest > 0 else ""


def choose_metrics(names: Sequence[str]) -> list[str]:
    """Of the metrics of jobs, those of DEFAULT_METRICS, then the first of each further evaluator or task."""
    chosen = [name for ending in DEFAULT_METRICS for name in sorted(set(names)) if name.endswith(ending)]
    tasks = {name.rpartition("/")[0] for name in chosen}
    first = {name.rpartition("/")[0]: name for name in reversed(names)}
    return [*chosen, *(name for task, name in reversed(first.items()) if task not in tasks)]


def uses_all_clips(count: str | None) -> bool:
    """Whether a job used all clips, as in `975 of 975 clips`, or has no count."""
    return count is None or re.fullmatch(r"(\d+) of \1 clips", count) is not None


def list_protocols(folder: Path, split: str) -> str:
    """Hashes of the protocols of a job's evaluations on a split, `test/`, or on all splits where it is empty."""
    protocols = read_json(folder / PROTOCOL).values()
    return " ".join(
        protocol.get("hash", "") for protocol in protocols if protocol["split"].startswith(split.rstrip("/"))
    )


def format_heading(metric: str) -> str:
    """Column heading of a metric: its name without the split."""
    return metric.split("/", 1)[-1].replace("/", " ")


def format_range(values: Sequence[float]) -> str:
    """`0.100`, or `0.100 to 0.250`."""
    ends = (min(values), max(values)) if values else ()
    return " to ".join(dict.fromkeys(map(format_number, ends))) or EMPTY

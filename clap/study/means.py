"""Means of a sweep over its seeds and folds: one row for each configuration, best first."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from clap.atomic import read_json
from clap.evaluation.results import read_results
from clap.run_folder import COST, METRICS, PROTOCOL
from clap.study.factors import FOLD, REPEATS, SEED, Repeat, drop_repeats
from clap.study.job import Job, job_levels, name_job, read_overrides
from clap.study.leaderboard import describe_cut, format_heading, format_range, rank_value
from clap.study.scores import (
    Column,
    Estimate,
    RunScores,
    Score,
    check_finite,
    describe_chance,
    list_some,
    make_column,
)
from clap.study.table import LONGEST_GAP, format_interval, name_repeats, record_estimate
from clap.text_table import EMPTY, format_minutes, format_number, shorten, tabulate, to_csv, to_markdown

ALL = "all jobs"  # name of the only configuration of a sweep over nothing but seeds and folds


@dataclass
class MeanRow:
    """One configuration of a sweep.

    Attributes:
        replicates: names of the jobs of each seed, one for each fold; of seeds whose folds all have a result.
        seconds: mean of the jobs with a result.
        gaps: why seeds are not counted; empty if all are.
        columns: metric -> scores of the jobs.
    """

    name: str
    replicates: list[list[str]] = field(default_factory=list)
    seconds: float | None = None
    gaps: str = ""
    columns: dict[str, Column] = field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """The number of the configuration; None if it has none."""
        return self.columns[metric].estimate(self.replicates) if self.replicates and metric in self.columns else None

    def chance(self, metric: str) -> float | None:
        """Chance level of a metric; None if it has none."""
        return self.columns[metric].chance if metric in self.columns else None

    def protocol(self, metric: str) -> str | None:
        """Hash of the protocol of a metric that it has; None if no evaluator computes it."""
        protocol = self.columns[metric].protocol
        return protocol and protocol["hash"]


class Means:
    """The configurations of a sweep, with the mean, standard deviation and 95 % interval of each, as a study has them.

    A configuration is a job without its seed and fold. Folds are parts of one number: a seed counts once all folds of
    the sweep have a result, and its number is their unweighted mean.

    Args:
        metrics: the leading one first.
        swept: keys that the sweep varies.
        groups: config groups, whose options name a configuration.

    Attributes:
        rows: the configurations, best first; empty if neither seeds nor folds are swept.
    """

    def __init__(
        self, jobs: Sequence[Job], *, metrics: Sequence[str], swept: Collection[str], groups: Collection[str]
    ) -> None:
        self.metrics, self.has_folds = list(metrics), FOLD in swept
        self.rows: list[MeanRow] = []
        if not jobs or not metrics or not any(key in swept for key in REPEATS):
            return
        found: dict[tuple, dict[Repeat, Job]] = defaultdict(dict)
        for job in jobs:
            levels = {key: level for key, level in job_levels(read_overrides(job.folder)).items() if key in swept}
            repeat = Repeat(levels.get(SEED, str(job.config.get(SEED))), levels.get(FOLD))
            found[tuple(drop_repeats(levels).items())][repeat] = job
        seeds, folds = (
            sort_numbers(names) for names in zip(*(key for own in found.values() for key in own), strict=True)
        )
        repeats = [Repeat(seed, fold) for seed in seeds for fold in folds]
        for levels, own in found.items():
            name = name_job(dict(levels), groups=groups) if levels else ALL
            self.rows.append(make_row(name, {repeat: own.get(repeat) for repeat in repeats}, metrics))
        self.rows.sort(key=self.rank)

    def rank(self, row: MeanRow) -> tuple[float, str]:
        estimate = row.estimate(self.metrics[0])
        return rank_value(estimate and estimate.mean, self.metrics[0]), row.name

    def markdown(self, *, longest: int | None = None) -> str:
        """A table of the configurations, of at most `longest`, and a description of its numbers; empty without rows."""
        if not self.rows:
            return ""
        leading, *others = self.metrics
        folds, gaps = ["folds"] * self.has_folds, ["not counted"] * any(row.gaps for row in self.rows)
        headings = [format_heading(leading), "SD", "95 % interval", *map(format_heading, others)]
        lines = [["configuration", "seeds", *folds, *headings, "minutes of a job", *gaps]]
        for row in self.rows[:longest]:
            found = row.estimate(leading) or Estimate(None)
            counts = [str(len(row.replicates)), *(str(len(row.replicates[0]) if row.replicates else 0) for _ in folds)]
            numbers = [format_number(found.mean), format_number(found.deviation), format_interval(found.interval)]
            numbers += [format_estimate(row.estimate(metric)) for metric in others]
            lines.append([row.name, *counts, *numbers, format_minutes(row.seconds), *(row.gaps for _ in gaps)])
        if any(levels := [self.list_chances(metric) for metric in self.metrics]):
            first, *rest = map(format_range, levels)
            lines.append(
                ["chance", *[EMPTY] * (1 + len(folds)), first, EMPTY, EMPTY, *rest, *[EMPTY] * (1 + len(gaps))]
            )
        return f"{to_markdown(lines, 1)}{describe_cut(self.rows, longest)}\n{self.describe()}\n"

    def describe(self) -> str:
        """What the numbers are, and for each metric a warning if no configuration is above chance."""
        text = "Means over seeds; SD is over seeds, and the interval over seeds and clips, from three seeds on."
        if self.has_folds:
            text = (
                "The number of a seed is the unweighted mean over its folds; SD is over folds. The interval is over "
                "seeds and clips from three seeds on, else over folds from three folds on (Nadeau & Bengio 2003)."
            )
        numbers = [
            [(row.columns[metric], row.replicates) for row in self.rows if row.estimate(metric)]
            for metric in self.metrics
        ]
        return " ".join(filter(None, (text, self.describe_protocols(), *map(describe_chance, numbers))))

    def describe_protocols(self) -> str:
        """A warning of metrics that the configurations compute under several protocols; empty if there are none."""
        hashes = {
            metric: {row.protocol(metric) for row in self.rows if row.estimate(metric)} for metric in self.metrics
        }
        mixed = [format_heading(metric) for metric, found in hashes.items() if len(found) > 1]
        return f"Configurations differ in the protocol of {', '.join(mixed)}, and do not compare." if mixed else ""

    def list_chances(self, metric: str) -> list[float]:
        """The chance levels of the configurations that have one."""
        found = [row.chance(metric) for row in self.rows]
        return [level for level in found if level is not None]

    def summary(self) -> str:
        """The best configuration and its leading number in one line; empty without rows or a result."""
        found = self.rows[0].estimate(self.metrics[0]) if self.rows else None
        if found is None or found.mean is None:
            return ""
        return f"Best mean: {self.rows[0].name} ({format_heading(self.metrics[0])} {format_number(found.mean)})."

    def csv(self) -> str:
        """One line for each configuration with all numbers in full precision."""
        records = []
        for row in self.rows:
            record: dict[str, object] = {"configuration": row.name, "seeds": len(row.replicates)}
            record |= {"folds": len(row.replicates[0]) if row.replicates else 0} if self.has_folds else {}
            for metric in self.metrics:
                record |= record_estimate(metric, row.estimate(metric)) | {f"{metric}/chance": row.chance(metric)}
            records.append(record | {"minutes": row.seconds and row.seconds / 60, "not counted": row.gaps})
        return to_csv(tabulate(records))

    def best(self) -> dict[str, float]:
        """The numbers of the best configuration as metrics of the parent run; empty without rows or a result.

        `best_mean/<metric>` is its mean of each metric of the table, with `/sd`, `/ci_low` and `/ci_high` if known, and
        `chance/<metric>` its chance level.
        """
        found = {}
        for metric in self.metrics if self.rows and self.rows[0].estimate(self.metrics[0]) else ():
            found |= record_estimate(f"best_mean/{metric}", self.rows[0].estimate(metric))
            found[f"chance/{metric}"] = self.rows[0].chance(metric)
        return {name: value for name, value in found.items() if value is not None}


def sort_numbers(names: Sequence[str | None]) -> list[str | None]:
    """Seeds or folds without repetitions, in the order of their numbers."""
    return sorted(set(names), key=lambda name: (len(name or ""), name))


def make_row(name: str, jobs: Mapping[Repeat, Job | None], metrics: Sequence[str]) -> MeanRow:
    """The row of a configuration.

    Args:
        jobs: job of each seed and fold of the sweep; None if it has not started.
    """
    outcomes = {repeat: job.problem if job else "missing" for repeat, job in jobs.items()}
    finished = {repeat: jobs[repeat] for repeat, outcome in outcomes.items() if outcome is None}
    lacking = defaultdict(list)
    for repeat, outcome in outcomes.items():
        if outcome is not None:
            lacking[outcome].append(repeat)
    gaps = [f"{name_repeats(some)} {shorten(outcome, LONGEST_GAP)}" for outcome, some in lacking.items()]
    seeds = dict.fromkeys(
        repeat.seed for repeat in jobs if all(repeat.seed != other.seed for own in lacking.values() for other in own)
    )
    replicates = [[job.name for repeat, job in finished.items() if repeat.seed == seed] for seed in seeds]
    costs = [read_json(job.folder / COST) for job in finished.values()]
    known = [cost["seconds"] for cost in costs if "seconds" in cost]
    row = MeanRow(name, replicates, sum(known) / len(known) if known else None)
    try:
        row.columns, problems = read_columns(finished, metrics)
    except (OSError, ValueError) as error:  # files of evaluations that are lost or truncated
        problems = [str(error)]
    gaps += [shorten(problem, LONGEST_GAP) for problem in problems]
    row.gaps = "; ".join(gaps)
    return row


def read_columns(jobs: Mapping[Repeat, Job], metrics: Sequence[str]) -> tuple[dict[str, Column], list[str]]:
    """Metric -> scores of the jobs, of the metrics that all of them have; and why others do not compare."""
    values = {job.name: read_json(job.folder / METRICS) for job in jobs.values()}
    recorded = {
        job.name: read_results(job.folder / "evaluation") if (job.folder / PROTOCOL).is_file() else []
        for job in jobs.values()
    }
    columns, problems = {}, []
    for metric in (metric for metric in metrics if any(metric in own for own in values.values())):
        if lacking := [name for name, own in values.items() if metric not in own]:
            problems.append(f"{metric} is not in metrics.json of {list_some(lacking)}")
            continue
        scores = {
            job.name: RunScores(job.name, values[job.name][metric], recorded[job.name], repeat.fold)
            for repeat, job in jobs.items()
        }
        try:
            if any(recorded.values()):
                columns[metric] = make_column(metric, scores)
            else:
                check_finite(metric, scores.values())
                columns[metric] = Column(metric, None, {name: Score(own.value) for name, own in scores.items()})
        except ValueError as error:  # protocols, clips or numbers that do not belong together
            problems.append(str(error))
    return columns, problems


def format_estimate(estimate: Estimate | None) -> str:
    """A mean with its interval, if it is known, such as "0.700 (0.256 to 1.000)"."""
    mean = format_number(estimate and estimate.mean)
    return f"{mean} ({format_interval(estimate.interval)})" if estimate and estimate.interval else mean

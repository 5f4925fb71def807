"""The files of a run folder, its owner, metric history and clip counts; the summary and the commit of a run."""

import itertools
import logging
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clap.atomic import PARTIAL, append_json_line, read_json, read_json_lines, write_json
from clap.log_lines import align_columns, align_rows

log = logging.getLogger(__name__)

RECORD = "mlflow.json"  # what the MLflow store should have of this run
HISTORY = "metrics.jsonl"
JOB_FILE, SWEEP_FILE, LOCK = "job.json", "sweep.json", ".lock"
TRIAL = "trial.json"  # the trial of a search that a job runs
SEARCH, SEARCH_SUMMARY = "search", "summary.md"  # folder of a sweep with the report of its search
METRICS, COST, PROTOCOL = "metrics.json", "cost.json", "evaluation/protocol.json"
OWNER = "run.json"  # id of the run, and the process that writes it
RESULTS = ("checkpoints", "evaluation", METRICS, HISTORY, RECORD, JOB_FILE, SWEEP_FILE)  # a folder with one holds a run
LOCK_SECONDS = 1.0  # timeout of a folder's lock, which `is_running` takes briefly
_owned: set[Path] = set()  # folders of this process


def create_new_folder(folder: Path) -> Path:
    """Create a folder, or FOLDER-2, FOLDER-3, ... if it exists: of processes with one name, each gets its own."""
    for number in itertools.count(1):
        created = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            created.mkdir(parents=True)
            return created
        except FileExistsError:
            continue


@contextmanager
def own_folder(
    folder: Path, *, resume: str | Path | None = None, advice: str, written: Iterable[str] = ()
) -> Iterator[None]:
    """Lock the folder of a run, and record its id and this process in run.json; nested calls have no effect.

    The lock ends with the process, also after a kill.

    Args:
        resume: `auto`, or a checkpoint; only a run that resumes from its own folder may write to one that holds a run.
        advice: what to do about a folder that holds a run, for the error.
        written: results that the run has written itself before this call.

    Raises:
        BlockingIOError: another process owns the folder.
        FileExistsError: the folder holds a run that is not resumed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() in _owned:
        yield
        return
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=LOCK_SECONDS)
    except Timeout:
        owner = read_json(folder / OWNER)
        who = "process {pid} on {host} since {start}".format(**owner) if owner else "another process"
        raise BlockingIOError(f"{folder} is in use by {who}; stop it, wait for it, or set another folder") from None
    with lock:
        found = [name for name in find_results(folder) if name not in written]
        if found and not can_resume(folder, found, resume):
            raise FileExistsError(f"{folder} holds {describe_results(found)} ({', '.join(found)}); {advice}")
        for path in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")]:
            path.unlink()  # left by a writer that was killed
        run_id = (read_json(folder / OWNER).get("id") if find_results(folder) else None) or uuid.uuid4().hex
        start = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder / OWNER, {"id": run_id, "pid": os.getpid(), "host": socket.gethostname(), "start": start})
        _owned.add(folder.resolve())
        try:
            yield
        finally:
            _owned.discard(folder.resolve())


def find_results(folder: Path) -> list[str]:
    """The results of a run in a folder; none if no run has been started there."""
    return [name for name in RESULTS if (folder / name).exists()]


def describe_results(found: Iterable[str]) -> str:
    return "a sweep" if SWEEP_FILE in found else "a run" if "checkpoints" in found else "results"


def can_resume(folder: Path, found: Iterable[str], resume: str | Path | None) -> bool:
    """Whether a run with this `resume` continues the run of a folder, which has not lost its checkpoints."""
    is_inside = resume == "auto" or (resume and Path(resume).resolve().is_relative_to(folder.resolve()))
    is_whole = METRICS not in found or "checkpoints" in found or JOB_FILE in found
    return bool(is_inside) and is_whole and SWEEP_FILE not in found


def append_history(run_dir: Path, metrics: Mapping[str, float], *, step: int) -> dict[str, Any]:
    """Append the metrics of a step to metrics.jsonl; returns the entry, with its time in seconds."""
    values = {name: float(value) for name, value in metrics.items()}
    entry = {"step": step, "time": time.time(), "metrics": values}
    append_json_line(run_dir / HISTORY, entry)
    return entry


def read_history(path: Path) -> list[dict]:
    """metrics.jsonl -> [{"step": int, "metrics": {name: value}}] by step; later values of a step win."""
    merged: dict[int, dict[str, float]] = {}
    for entry in read_json_lines(path):
        merged.setdefault(entry["step"], {}).update(entry["metrics"])
    return [{"step": step, "metrics": merged[step]} for step in sorted(merged)]


def read_counts(run_dir: Path) -> dict[str, str]:
    """`count_clips` of a run; empty before its first evaluation."""
    return count_clips(read_json(run_dir / PROTOCOL).values())


def read_chance(run_dir: Path) -> dict[str, float]:
    """Metric -> its chance level, of the latest evaluations of a run and of metrics that have one."""
    protocols = read_json(run_dir / PROTOCOL).values()
    return {name: value for protocol in protocols for name, value in protocol.get("chance", {}).items()}


def count_clips(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Clips behind the numbers of each split and corpus, {"test/audiocaps/clips": "893 of 975 clips"}."""
    merged: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        name = f"{protocol['split']}/{protocol['dataset']}/clips"
        merged[name] = {**merged.get(name, {}), **protocol}
    return {name: describe_clips(protocol) for name, protocol in merged.items()}


def describe_clips(protocol: Mapping[str, Any]) -> str:
    """`893 of 900 clips (975 published, 300 with a label)`; in brackets only numbers that differ from the first two."""
    used, listed = map(int, protocol["clips"].split(" of "))
    others = {
        "published": (protocol.get("published_clips"), listed),
        "with a label": (protocol.get("clips_with_label"), used),
    }
    extra = [f"{number} {words}" for words, (number, same) in others.items() if number not in (None, same)]
    return f"{protocol['clips']} clips" + (f" ({', '.join(extra)})" if extra else "")


def find_count(metric: str, counts: Mapping[str, str]) -> str:
    """The clips behind a metric, from the counts of `count_clips`; empty if unknown."""
    return next((text for name, text in counts.items() if metric.startswith(name.removesuffix("clips"))), "")


def log_summary(run_dir: Path, metrics: Mapping[str, float], rows: Mapping[str, str]) -> None:
    """Log the metrics of a run in a table, with the chance level and the clips of each, then further rows.

    Args:
        rows: what else a reader wants to know at the end, by name.
    """
    counts, chance = read_counts(run_dir), read_chance(run_dir)
    table = [("metric", "value", "chance", "clips")]
    for name, value in metrics.items():
        level = f"{chance[name]:.4f}" if name in chance else ""
        table.append((name, f"{value:.4f}", level, find_count(name, counts).removesuffix(" clips")))
    log.info("%s\n%s", align_columns(table, numbers=(1, 2)), align_rows(rows))


def show_path(path: Path) -> str:
    """A path for a reader: relative to the working directory if it is inside."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def find_outside(folder: Path, path: Path) -> Path | None:
    """The first of a path and the files below it that is outside of a folder, after following links."""
    return next(
        (file for file in [path, *path.rglob("*")] if not file.resolve().is_relative_to(folder.resolve())), None
    )


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True


def git_commit(folder: Path) -> str | None:
    """Commit of the work tree of `folder`, with the suffix -dirty if files differ; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def append_changed(names: Sequence[str], name: str | None) -> list[str]:
    """The names, and another one if it is known and differs from the last."""
    return [*names, name] if name is not None and list(names[-1:]) != [name] else list(names)

"""The files of a run folder, its metric history, clip counts and lock; the summary and the commit of a run."""

import logging
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clap.atomic import read_json, read_json_lines

log = logging.getLogger(__name__)

RECORD = "mlflow.json"  # what the MLflow store should have of this run
HISTORY = "metrics.jsonl"
JOB_FILE, SWEEP_FILE, LOCK = "job.json", "sweep.json", ".lock"
METRICS, COST, PROTOCOL = "metrics.json", "cost.json", "evaluation/protocol.json"


def read_history(path: Path) -> list[dict]:
    """metrics.jsonl -> [{"step": int, "metrics": {name: value}}] by step; later values of a step win."""
    merged: dict[int, dict[str, float]] = {}
    for entry in read_json_lines(path):
        merged.setdefault(entry["step"], {}).update(entry["metrics"])
    return [{"step": step, "metrics": merged[step]} for step in sorted(merged)]


def read_counts(run_dir: Path) -> dict[str, str]:
    """`count_clips` of a run; empty before its first evaluation."""
    return count_clips(read_json(run_dir / PROTOCOL).values())


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


def log_summary(run_dir: Path, metrics: Mapping[str, float], hint: str) -> None:
    """Log the metrics of a run with the clips behind each, its folder, and how to view it."""
    counts = read_counts(run_dir)
    for name, value in metrics.items():
        log.info("%-60s %.4f  %s", name, value, find_count(name, counts))
    log.info("run folder %s; to see it: %s", run_dir, hint)


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

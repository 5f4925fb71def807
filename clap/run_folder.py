"""The files of a run folder, its metric history and clip counts, its lock, and the command that resumes the run."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clap.atomic import read_json, read_json_lines

RECORD = "mlflow.json"  # what the MLflow store should have of this run
HISTORY = "metrics.jsonl"
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


def resume_command(argv: Sequence[str], overrides: Sequence[str]) -> str:
    """The command of `argv` with additional overrides, which replace those of the same keys."""
    script, *arguments = argv
    keys = tuple(f"{override.partition('=')[0]}=" for override in overrides)
    arguments = [argument for argument in arguments if not argument.startswith(keys)]
    together = (i for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-"))
    first = next(together, len(arguments))  # flags are before or after all overrides
    return shlex.join(["python", script, *arguments[:first], *overrides, *arguments[first:]])


JOB_FILE, LOCK = "job.json", ".lock"


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True


SWEEP_FILE = "sweep.json"

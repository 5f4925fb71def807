"""The files of a run's folder: their names, the metrics' history, clip counts, and the command that resumes the run."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clap.atomic import read_json, read_json_lines

RECORD = "mlflow.json"  # what the store should hold of this run
HISTORY = "metrics.jsonl"
METRICS, COST, PROTOCOL = "metrics.json", "cost.json", "evaluation/protocol.json"


def read_history(path: Path) -> list[dict]:
    """metrics.jsonl -> [{"step": int, "metrics": {name: value}}] by step; the later value of a repeated step wins."""
    merged: dict[int, dict[str, float]] = {}
    for entry in read_json_lines(path):
        merged.setdefault(entry["step"], {}).update(entry["metrics"])
    return [{"step": step, "metrics": merged[step]} for step in sorted(merged)]


def read_counts(run_dir: Path) -> dict[str, str]:
    """What `count_clips` says of a run; nothing before its first evaluation."""
    return count_clips(read_json(run_dir / PROTOCOL).values())


def count_clips(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Clips behind the numbers of each split and corpus, {"test/audiocaps/clips": "893 of 975 clips"}."""
    merged: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        name = f"{protocol['split']}/{protocol['dataset']}/clips"
        merged[name] = {**merged.get(name, {}), **protocol}
    return {name: describe_clips(protocol) for name, protocol in merged.items()}


def describe_clips(protocol: Mapping[str, Any]) -> str:
    """`893 of 900 clips (975 published, 300 with a label)`; in brackets only what differs from the numbers before."""
    used, listed = map(int, protocol["clips"].split(" of "))
    others = {
        "published": (protocol.get("published_clips"), listed),
        "with a label": (protocol.get("clips_with_label"), used),
    }
    told = [f"{number} {words}" for words, (number, same) in others.items() if number not in (None, same)]
    return f"{protocol['clips']} clips" + (f" ({', '.join(told)})" if told else "")


def find_count(metric: str, counts: Mapping[str, str]) -> str:
    """The clips behind a metric, from what `count_clips` says; nothing where it does not say."""
    return next((text for name, text in counts.items() if metric.startswith(name.removesuffix("clips"))), "")


def resume_command(argv: Sequence[str], overrides: Sequence[str]) -> str:
    """The command of `argv` with further overrides, which take the place of those of the same keys."""
    script, *arguments = argv
    keys = tuple(f"{override.partition('=')[0]}=" for override in overrides)
    arguments = [argument for argument in arguments if not argument.startswith(keys)]
    together = (i for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-"))
    first = next(together, len(arguments))  # flags stand before or after all overrides
    return shlex.join(["python", script, *arguments[:first], *overrides, *arguments[first:]])


JOB_FILE, LOCK = "job.json", ".lock"


def is_running(folder: Path) -> bool:
    """Is a process running the job of this folder now?"""
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True


SWEEP_FILE = "sweep.json"

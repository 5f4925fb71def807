"""What a run folder or a checkpoint records about a model, for its model card. Without paths of this machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clap import checkpoint
from clap.atomic import read_json
from clap.config.saved import read_saved_yaml
from clap.config.secrets import hide_secrets
from clap.evaluation.results import RecordedEvaluation, read_results
from clap.proportion import Interval
from clap.run_folder import COST, METRICS, PROTOCOL, RECORD, describe_clips
from clap.study.scores import RunScores, find_evaluation, make_column

PATH = re.compile(r"[/~.]|[A-Za-z]:[\\/]")  # how a path of a machine begins; names on the hub do not
CLIPS = "/clips"  # end of the tags with the clips of each split and corpus


@dataclass(frozen=True)
class Result:
    """A metric of a run: its value, interval of 95 % over clips, chance level, clips and the hash of its protocol."""

    metric: str
    value: float
    interval: Interval | None
    chance: float | None
    clips: str
    protocol: str


@dataclass
class RunFacts:
    """What is recorded of a checkpoint and its run.

    Attributes:
        checkpoint: its folder.
        run_dir: folder of the run whose metrics are those of the checkpoint; None for other checkpoints.
        config: of the checkpoint, as its file has it.
        tags, params: of the run, as MLflow has them; empty without a run.
        cost: of the run, such as its seconds.
        results: metrics that an evaluator has computed.
        protocols: name of each evaluation -> its protocol.
    """

    checkpoint: Path
    run_dir: Path | None
    config: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)

    def list_clips(self) -> dict[tuple[str, str], str]:
        """(split, corpus) -> `893 of 975 clips`, of the run."""
        found = [(name, value) for name, value in self.tags.items() if name.endswith(CLIPS) and name.count("/") == 2]
        return {tuple(name.removesuffix(CLIPS).split("/")): value for name, value in found}


def read_run(path: Path) -> RunFacts:
    """Facts of a run folder, whose best checkpoint they describe, or of a checkpoint folder.

    Raises:
        FileNotFoundError: there is no checkpoint of this package.
        OSError, ValueError: recorded evaluations are damaged, or do not belong to the metrics.
    """
    folder = checkpoint.find_best(Path(path).resolve())
    config = read_saved_yaml(checkpoint.find_file(folder, checkpoint.CONFIG))
    if folder.parent.name != "checkpoints":
        return RunFacts(folder, None, config)
    run_dir = folder.parent.parent
    record, cost = read_json(run_dir / RECORD), read_json(run_dir / COST)
    facts = RunFacts(folder, None, config, record.get("tags", {}), record.get("params", {}), cost)
    if folder.name == "best":  # the metrics of a run are those of its best checkpoint
        facts.run_dir = run_dir
        facts.protocols = read_json(run_dir / PROTOCOL)
        evaluations = read_results(run_dir / "evaluation") if facts.protocols else []
        facts.results = list_results(read_json(run_dir / METRICS), evaluations)
    return facts


def list_results(metrics: Mapping[str, float], evaluations: list[RecordedEvaluation]) -> list[Result]:
    """The metrics that evaluators declare, with what belongs to each."""
    declared = {metric for evaluation in evaluations for metric in evaluation.metrics}
    return [make_result(metric, value, evaluations) for metric, value in metrics.items() if metric in declared]


def make_result(metric: str, value: float, evaluations: list[RecordedEvaluation]) -> Result:
    scores = RunScores("of this checkpoint", value, evaluations)
    column, protocol = make_column(metric, {"run": scores}), find_evaluation(metric, scores).protocol
    interval = column.clip_intervals().get("run")
    return Result(metric, value, interval, column.chance, describe_clips(protocol), protocol["hash"])


def hide_path(value: Any) -> str:
    """A recorded value as text; of a path of this machine only the name, and no password or token."""
    text = hide_secrets(str(value))
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if PATH.match(text) else text


def without_paths(node: Any) -> Any:
    """Nested plain data in which texts are those of `hide_path`."""
    if isinstance(node, Mapping):
        return {key: without_paths(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_paths(value) for value in node]
    return hide_path(node) if isinstance(node, str) else node

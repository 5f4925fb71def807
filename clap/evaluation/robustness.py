"""A metric of another evaluator on distorted clips: noise, gain, low-pass, coding, reverberation, shift, length."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clap.config import find_conf_dir, read_config
from clap.config.build import build, find_target
from clap.config.values import suggest
from clap.dataset.clips import ClapDataset
from clap.evaluation.distortions import DISTORTIONS, Condition, check_bitrates, check_levels
from clap.evaluation.embedded_split import EmbeddedSplit, Splits
from clap.evaluation.evaluator import Evaluator
from clap.evaluation.results import Evaluation, label_metric
from clap.evaluation.robustness_report import Point, draw_interval, write_curves
from clap.progress import progress_bar

if TYPE_CHECKING:  # imports transformers
    from clap.audio_model import AudioModel

log = logging.getLogger(__name__)
KEY = "evaluation.robustness"
LABELLED, CAPTIONED = "zero_shot/accuracy", "text_to_audio/recall_at_1"  # metrics by default
TASKS = {"text_to_audio": "retrieval", "audio_to_text": "retrieval"}  # first part of a metric -> its evaluator
CLEAN = "clean"


class Robustness(Evaluator):
    """One metric on the clips of a split as they are, and under each distortion at each level.

    The evaluated split is embedded once more for each level. The waveform of a whole clip is distorted at the model's
    sample rate, before the window is cut, by the workers of the loader; other splits that the metric needs stay as they
    are. An evaluator of training's validations would take as many times as long: train.py refuses it.

    Args:
        levels: distortion -> its levels, see DISTORTIONS in distortions.py.
        distortions: those of `levels` that are evaluated.
        metric: of another evaluator, such as `zero_shot/accuracy`; None: that one if all clips have a label, else
            `text_to_audio/recall_at_1`.
        options: of the evaluator of the metric, in place of those of its yaml.
        seed: of noise and impulse responses.

    Raises:
        ValueError: an unknown distortion, level, metric or option.
    """

    in_training = False
    classifier_options = f"{KEY}.metric=classification/accuracy"

    def __init__(
        self,
        *,
        levels: Mapping[str, Sequence[float | str]],
        distortions: Sequence[str] = tuple(DISTORTIONS),
        metric: str | None = None,
        options: Mapping[str, Any] = {},
        seed: int = 0,
    ) -> None:
        for name, chosen in levels.items():
            check_levels(name, chosen, f"{KEY}.levels.{name}")
        if not distortions or len(set(distortions)) < len(distortions):
            raise ValueError(f"{KEY}.distortions={list(distortions)} must name one distortion or more, each once")
        if unknown := [name for name in distortions if name not in levels]:
            raise ValueError(
                f"{KEY}.distortions: {unknown[0]!r} is not one of {', '.join(levels)}{suggest(unknown[0], levels)}"
            )
        self.conditions = [Condition(name, level, seed) for name in distortions for level in levels[name]]
        self.metric_names = tuple(f"robustness/{name}" for name in (CLEAN, *(own.metric for own in self.conditions)))
        self.metric, self.options, self.seed = metric, dict(options), seed
        if metric is not None:
            evaluator = find_evaluator(metric, self.options)[1]
            self.needs, self.needs_text, self.needs_head = evaluator.needs, evaluator.needs_text, evaluator.needs_head

    def check(self, dataset: ClapDataset) -> None:
        metric, _, evaluator = self.choose(dataset)
        try:
            evaluator.check(dataset)
        except ValueError as error:
            raise ValueError(f"{KEY}.metric={metric}: {error}") from None
        if bitrates := [condition.level for condition in self.conditions if condition.name == "mp3"]:
            check_bitrates(bitrates, dataset.sample_rate, f"{KEY}.levels.mp3")

    def check_splits(self, dataset: ClapDataset, others: Mapping[str, ClapDataset]) -> None:
        self.choose(dataset)[2].check_splits(dataset, others)

    def check_model(self, clap: "AudioModel", dataset: ClapDataset) -> None:
        check_windows(clap, self.conditions)
        self.choose(dataset)[2].check_model(clap, dataset)

    def choose(self, dataset: ClapDataset) -> tuple[str, str, Evaluator]:
        """The metric for a dataset, and name and object of its evaluator."""
        is_labelled = self.metric is None and all(clip.label is not None for clip in dataset.clips)
        metric = self.metric or (LABELLED if is_labelled else CAPTIONED)
        return metric, *find_evaluator(metric, self.options)

    def __call__(self, clap: "AudioModel", splits: Splits) -> Evaluation:
        metric, name, evaluator = self.choose(splits.evaluated.dataset)
        log.info("robustness of %s: the split is embedded %d times more", metric, len(self.conditions))
        values, scores, clean = {}, {}, None
        with embed_texts_once(clap):
            progress = progress_bar([None, *self.conditions], desc="robustness", unit="level")
            for full_name, condition in zip(self.metric_names, progress, strict=True):
                split = splits.evaluated if condition is None else embed_under(clap, splits, condition)
                result = evaluator(clap, replace(splits, evaluated=split))
                clean = clean or result
                values[full_name] = result.metrics[metric]
                if metric in result.scores:
                    scores[full_name] = result.scores[metric]
                log.info("%s %.4f", full_name, values[full_name])
        own = {key: value for key, value in clean.protocol.items() if key != "definition"}
        protocol = own | {
            "metric": metric,
            "metric_evaluator": name,
            "metric_definition": clean.protocol.get("definition", evaluator.definition),
            "distortions": {key: found.definition for key, found in DISTORTIONS.items()},
            "distortion_seed": self.seed,
        }
        chance = dict.fromkeys(values, clean.chance[metric]) if metric in clean.chance else {}
        return Evaluation(values, clean.clip_ids, scores=scores, protocol=protocol, chance=chance)

    def write_report(self, result: Evaluation, folder: Path) -> None:
        """robustness.csv, a figure of each distortion, and overview.png; intervals are over clips."""
        prefix = "{split}/{dataset}/robustness/".format(**result.protocol)
        points = {
            name.removeprefix(prefix): Point(value, draw_interval(result.scores.get(name)))
            for name, value in result.metrics.items()
        }
        write_curves(
            folder,
            points.pop(CLEAN),
            points,
            metric=label_metric(result.protocol["metric"]),
            data="{dataset} ({split})".format(**result.protocol),
            note=f"{len(result.clip_ids)} clips" + "; error bars: 95 % intervals over clips" * bool(result.scores),
            chance=result.chance.get(f"{prefix}{CLEAN}"),
        )


def find_evaluator(metric: str, options: Mapping[str, Any]) -> tuple[str, Evaluator]:
    """Name and object of the evaluator of conf/evaluation that computes a metric.

    Args:
        options: in place of those of its yaml.

    Raises:
        ValueError: there is none, or the options are invalid.
    """
    folder, task, known = find_conf_dir() / "evaluation", metric.partition("/")[0], []
    for path in sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != TASKS.get(task, task), path.stem)):
        node = read_config(path)
        if find_target(node, Evaluator) is Robustness or not options.keys() <= node.keys():
            continue
        evaluator = build({**node, **options}, Evaluator)
        if metric in evaluator.metric_names:
            return path.stem, evaluator
        known += evaluator.metric_names
    having = f" with the options {', '.join(options)}" if options else ""
    raise ValueError(
        f"{KEY}.metric={metric} is not computed by an evaluator{having}{suggest(metric, known)}; metrics: "
        f"{', '.join(known) or 'none'}"
    )


def check_windows(clap: "AudioModel", conditions: Sequence[Condition]) -> None:
    """ValueError if the audio encoder does not have a policy for windows, before anything is embedded."""
    for condition in conditions:
        if condition.name == "windows":
            try:
                with using_windows(clap, condition.level):
                    pass
            except ValueError as error:
                raise ValueError(f"{error}, or remove windows from {KEY}.distortions") from None


def embed_under(clap: "AudioModel", splits: Splits, condition: Condition) -> EmbeddedSplit:
    """The evaluated clips embedded under a condition."""
    if condition.name != "windows":
        return splits.embed_distorted(condition)
    with using_windows(clap, condition.level):
        return splits.embed_distorted(None)


@contextlib.contextmanager
def using_windows(clap: "AudioModel", windows: str) -> Iterator[None]:
    """Set the policy for windows within the block."""
    before = clap.windows
    try:
        clap.set_windows(windows)
        yield
    finally:
        clap.set_windows(before)


@contextlib.contextmanager
def embed_texts_once(clap: "AudioModel") -> Iterator[None]:
    """Keep the text embeddings that are requested within the block: they do not depend on the audio."""
    if clap.text_encoder is None:
        yield
        return
    embed, known = clap.get_text_embeddings, {}

    def find(captions: Sequence[str], **options: Any) -> Tensor:
        key = tuple(captions)
        if key not in known:
            known[key] = embed(captions, **options)
        return known[key]

    clap.get_text_embeddings = find
    try:
        yield
    finally:
        del clap.get_text_embeddings

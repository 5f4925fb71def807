"""The evaluator contract, and how evaluators run on a split: in training's validation and in evaluate.py alike."""

import functools
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from clap.config.build import build, find_target
from clap.config.values import CLASSIFIER, check_name, suggest
from clap.dataset.clips import ClapDataset, list_captions
from clap.evaluation.embedded_split import EmbeddedSplit, Splits, embed_distorted, embed_split
from clap.evaluation.metric_names import lower_is_better
from clap.evaluation.protocol import describe_code, describe_other_splits, describe_split
from clap.evaluation.results import Evaluation, hash_protocol, name_files
from clap.loss import ClassificationLoss

if TYPE_CHECKING:  # imports transformers
    from clap.audio_model import AudioModel
    from clap.model import Clap

log = logging.getLogger(__name__)


class Evaluator:
    """Model and splits -> Evaluation.

    A child class is built from its yaml in conf/evaluation. It is called in evaluation mode and without gradients; one
    that trains a probe enables them itself, and draws random numbers from a generator of its own.

    Attributes:
        metric_names: all keys of `Evaluation.metrics`; the first one chooses the best checkpoint, higher is better.
        needs: further splits that it reads, such as ("train",) for a linear probe. They are opened only if needed.
        needs_text: whether it compares clips with text, which a classifier cannot embed.
        needs_head: whether it evaluates the head of a classifier.
        classifier_options: what evaluates a classifier in its place, if it needs text.
        definition: version of its metrics, part of the protocol; raised by hand when their definition changes, so that
            numbers of the old and the new definition do not share a column.
        in_training: whether train.py accepts it, for its validations; False: too slow, only for evaluate.py.
    """

    metric_names: tuple[str, ...]
    needs: tuple[str, ...] = ()
    needs_text: bool = True
    needs_head: bool = False
    classifier_options: str = "evaluation=[classification], or with several labels [multi_label_classification]"
    definition: int = 1
    in_training: bool = True

    def check(self, dataset: ClapDataset) -> None:
        """Refuse a dataset before anything is trained or embedded; called on each split that the evaluator reads."""

    def check_splits(self, dataset: ClapDataset, others: Mapping[str, ClapDataset]) -> None:
        """Refuse an evaluated split together with those of `needs`, by kind; called after `check` of each."""

    def check_model(self, clap: "AudioModel", dataset: ClapDataset) -> None:
        """Refuse a model, or an evaluated split that does not fit it, before anything is trained or embedded."""

    def __call__(self, clap: "Clap", splits: Splits) -> Evaluation:
        raise NotImplementedError

    def write_report(self, result: Evaluation, folder: Path) -> None:
        """Write tables and pictures of a result on the test split, or of `evaluate.py`, into a folder of its own."""


def build_evaluators(config: Mapping[str, Any]) -> dict[str, Evaluator]:
    """The evaluators of a composed config, by name.

    Raises:
        ValueError: an evaluator cannot be built, or a name cannot be part of a metric.
    """
    evaluators = {check_name(name, "evaluation"): build(node, Evaluator) for name, node in config["evaluation"].items()}
    for name, evaluator in evaluators.items():
        for part in itertools.chain(*(metric.split("/") for metric in evaluator.metric_names)):
            check_name(part, f"metric_names of evaluation {name}")
    return evaluators


def check_training(evaluators: Mapping[str, Evaluator]) -> None:
    """ValueError if an evaluator is too slow for the validations of a training."""
    if slow := [name for name, evaluator in evaluators.items() if not evaluator.in_training]:
        raise ValueError(
            f"evaluation {slow[0]} is too slow for each validation of a training; train without it, then run "
            f"`python evaluate.py checkpoint=RUN 'evaluation=[{slow[0]}]'`"
        )


def check_metrics(
    config: Mapping[str, Any],
    evaluators: Mapping[str, Evaluator],
    corpora: Mapping[str, Sequence[str]],
    others: Mapping[str, Sequence[str]] = {},
) -> None:
    """Check that evaluators compute the metrics `trainer.monitor` and `study.metrics` of a config.

    Args:
        corpora: split -> names of the corpora that are evaluated.
        others: split -> full names of the metrics of evaluation datasets.

    Raises:
        ValueError: no evaluator computes a metric.
    """
    known = {split: name_metrics(split, names, evaluators) for split, names in corpora.items()}
    known = {split: [*known.get(split, []), *others.get(split, [])] for split in {**known, **others}}
    monitor, allowed = config["trainer"]["monitor"], list(filter(is_monitor, known.get("val", [])))
    if monitor is not None and allowed and monitor not in allowed:
        raise ValueError(f"trainer.monitor={monitor} is not one of {', '.join(allowed)}")
    logged = [name for names in known.values() for name in names]
    for name in (config["study"] or {}).get("metrics") or []:
        if name not in logged:
            advice = suggest(name, logged) or f"; metrics: {', '.join(logged)}"
            raise ValueError(f"study.metrics: the runs do not log {name}{advice}")


def is_monitor(metric: str) -> bool:
    """Whether a metric can choose the best checkpoint: higher is better."""
    return not lower_is_better(metric)


def find_needs(evaluators: Mapping[str, Evaluator]) -> list[str]:
    """The splits that evaluators need besides the evaluated one."""
    return list(dict.fromkeys(kind for evaluator in evaluators.values() for kind in evaluator.needs))


def check_evaluators(
    dataset: ClapDataset, evaluators: Mapping[str, Evaluator], others: Mapping[str, ClapDataset] | None = None
) -> None:
    """Let every evaluator check the splits of each corpus that it reads.

    Args:
        dataset: the evaluated split.
        others: split -> dataset, of the splits that evaluators need.

    Raises:
        ValueError: an evaluator cannot run on this dataset, or needs a split that the corpus does not have.
    """
    parts = {kind: split_by_corpus(other) for kind, other in (others or {}).items()}
    parts[dataset.kind] = split_by_corpus(dataset)
    for corpus in parts[dataset.kind]:
        for name, evaluator in evaluators.items():
            for kind in dict.fromkeys([dataset.kind, *evaluator.needs]):
                if corpus not in parts.get(kind, {}):
                    raise ValueError(
                        f"evaluation {name} needs the {kind} split of {corpus}, which has no clips; give a dataset "
                        f"with this split, or remove {name} from evaluation=[...]"
                    )
                evaluator.check(parts[kind][corpus])
            evaluator.check_splits(parts[dataset.kind][corpus], {kind: parts[kind][corpus] for kind in evaluator.needs})


def check_models(clap: "AudioModel", dataset: ClapDataset, evaluators: Mapping[str, Evaluator]) -> None:
    """Let every evaluator check the model that it will evaluate on a split.

    Raises:
        ValueError: an evaluator cannot evaluate the model, or not on this dataset.
    """
    check_kind(evaluators, is_classifier=clap.class_names is not None)
    for name, evaluator in evaluators.items():
        if evaluator.needs_text and clap.text_encoder is None:
            raise ValueError(f"evaluation {name} compares clips with text, and this model has no text encoder")
        for part in split_by_corpus(dataset).values():
            evaluator.check_model(clap, part)


def check_kind(evaluators: Mapping[str, Evaluator], *, is_classifier: bool) -> None:
    """ValueError if an evaluator is not of a classifier, or of a model without a head."""
    for name, evaluator in evaluators.items():
        if is_classifier and evaluator.needs_text:
            raise ValueError(
                f"evaluation {name} compares clips with text, and a classifier has no text encoder; set "
                f"{evaluator.classifier_options}"
            )
        if evaluator.needs_head and not is_classifier:
            raise ValueError(
                f"evaluation {name} needs a classifier, and this model has no head over classes; train one with "
                "experiment=fine_tune_classifier init_from=CHECKPOINT, or set evaluation=[zero_shot]"
            )


def check_classifier(config: Mapping[str, Any], evaluators: Mapping[str, Evaluator]) -> None:
    """Check that the loss and the evaluators of a composed config are of its kind of model.

    Raises:
        ValueError: a classifier has another loss or evaluator, or a model without a head has one of a classifier.
    """
    is_classifier, loss = config.get(CLASSIFIER) is not None, find_target(config["loss"], nn.Module)
    if issubclass(loss, ClassificationLoss) != is_classifier:
        allowed = "cross_entropy or binary_cross_entropy" if is_classifier else "symmetric_cross_entropy"
        raise ValueError(
            f"loss={loss.__name__} does not train {'a classifier' if is_classifier else 'a model without a classifier'}"
            f"; set loss={allowed}{'' if is_classifier else ', or experiment=fine_tune_classifier'}"
        )
    if is_classifier and (config.get("lora") or {}).get("text_encoder"):
        raise ValueError("lora.text_encoder has no effect on a classifier, which has no text encoder; set it to null")
    check_kind(evaluators, is_classifier=is_classifier)


def split_by_corpus(dataset: ClapDataset) -> dict[str, ClapDataset]:
    """Corpus -> its clips of the dataset."""
    return {name: part for name, (part, _) in zip(dataset.names, dataset.by_corpus, strict=True)}


def name_metrics(split: str, corpora: Iterable[str], evaluators: Mapping[str, Evaluator]) -> list[str]:
    """Full names of the metrics that evaluators compute on a split, `<split>/<corpus>/<metric>`."""
    names = [name for evaluator in evaluators.values() for name in evaluator.metric_names]
    return [f"{split}/{corpus}/{name}" for corpus in corpora for name in names]


def evaluate_split(
    clap: "Clap",
    loader: DataLoader,
    evaluators: Mapping[str, Evaluator],
    *,
    other_loaders: Mapping[str, DataLoader] | None = None,
) -> dict[str, Evaluation]:
    """Run every evaluator on one split of each corpus; metric names get `<split>/<dataset>/` in front.

    Args:
        loader: over the evaluated split.
        other_loaders: split -> loader in evaluation mode, of the splits that evaluators need.

    Returns:
        Evaluations by evaluator, or by `<dataset>/<evaluator>` where there are several corpora.
    """
    loaders = {**(other_loaders or {}), loader.dataset.kind: loader}
    check_evaluators(loader.dataset, evaluators, {kind: other.dataset for kind, other in loaders.items()})
    check_models(clap, loader.dataset, evaluators)
    if clap.text_encoder is not None:
        clap.tokenizer.cache_captions(list_captions(loader.dataset))

    @functools.cache
    def embed(kind: str) -> dict[str, EmbeddedSplit]:
        return dict(zip(loaders[kind].dataset.names, embed_split(clap, loaders[kind]).by_corpus(), strict=True))

    parts = embed(loader.dataset.kind)
    results = {}
    with clap.inference():
        for corpus, split in parts.items():
            for name, evaluator in evaluators.items():
                others = {kind: lambda kind=kind, corpus=corpus: embed(kind)[corpus] for kind in evaluator.needs}
                key = name if len(parts) == 1 else f"{corpus}/{name}"
                again = functools.partial(embed_distorted, clap, split, loader)
                results[key] = run_evaluator(clap, Splits(split, others, again), name, evaluator)
    return results


def write_reports(folder: Path, results: Mapping[str, Evaluation], evaluators: Mapping[str, Evaluator]) -> None:
    """Let each evaluator write its tables and pictures, into <split>-<dataset>-<evaluator>/ in a folder.

    An error is logged: the metrics of a finished training do not depend on its pictures.
    """
    for key, result in results.items():
        name = key.rpartition("/")[2]
        target = folder / name_files(result, name)
        try:
            evaluators[name].write_report(result, target)
        except Exception as error:  # of an evaluator of a user's own, any
            what = f"{type(error).__name__}: {error}"
            log.warning("%s lacks tables or pictures of evaluation %s: %s", target, name, what, exc_info=True)


def run_evaluator(clap: "Clap", splits: Splits, name: str, evaluator: Evaluator) -> Evaluation:
    """The evaluation of one corpus, with full names of metrics and the whole protocol.

    Raises:
        ValueError: the evaluator returns other metrics than its `metric_names`.
    """
    split = splits.evaluated
    result = evaluator(clap, splits)
    if set(result.metrics) != set(evaluator.metric_names):
        raise ValueError(
            f"evaluation {name} returns the metrics {', '.join(result.metrics)}; its metric_names are "
            f"{', '.join(evaluator.metric_names)}; make the two equal"
        )
    prefix = f"{split.dataset.kind}/{split.dataset.name}"
    metrics = {f"{prefix}/{key}": value for key, value in result.metrics.items()}
    scores = {f"{prefix}/{key}": value for key, value in result.scores.items()}
    protocol = describe_split(clap, split) | {"evaluator": name, "definition": evaluator.definition} | result.protocol
    protocol |= describe_other_splits([splits[kind] for kind in evaluator.needs if kind != split.dataset.kind])
    chance = {f"{prefix}/{key}": value for key, value in result.chance.items()}
    known = {"hash": hash_protocol(protocol), "recorded_by": describe_code()} | ({"chance": chance} if chance else {})
    return Evaluation(metrics, result.clip_ids, scores, result.per_query, known | protocol, chance)

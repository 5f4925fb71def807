"""Checks of a run's config, before Hydra starts, which takes seconds, and before the first job of a sweep."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clap import checkpoint
from clap.config.augmentation_settings import AugmentationSettings
from clap.config.build import find_target
from clap.config.lora_settings import read_lora
from clap.config.values import SPLITS, TRAINED_PARTS, check_learning_rates, check_name
from clap.corpus import Corpus
from clap.dataset.dataset_settings import DatasetSettings, read_dataset_settings
from clap.dataset.evaluation_options import open_evaluation_datasets, plan_evaluation_datasets
from clap.dataset.exclude import read_exclusions
from clap.dataset.mixture import Mixture, plan_mixture
from clap.dataset.registry import find_splits, open_corpus
from clap.dataset.rewritings import read_rewritings
from clap.processes import check_batch_size, check_parallel, read_processes
from clap.published.sources import is_published
from clap.training.trainer_settings import TrainerSettings

if TYPE_CHECKING:  # imports torch
    from clap.evaluation.evaluation_set import EvaluationDataset
    from clap.evaluation.evaluator import Evaluator


def check_run(config: Mapping[str, Any]) -> None:
    """Check the settings of a run and of its evaluators, the files that it starts from, and the metrics that it names.

    Raises:
        ValueError: a setting is out of range, or no evaluator computes a metric.
        FileNotFoundError: a checkpoint or a list of clips does not exist.
    """
    trainer = TrainerSettings(**config["trainer"])
    augmentation = AugmentationSettings(**config["augmentation"])
    settings = read_dataset_settings(config["dataset"])
    check_batch_size(settings.batch_size, read_processes().world_size)
    check_schedule(config["optimizer"])
    check_parallel(config["trainer"]["parallel"], read_processes().world_size)
    if unknown := [name for name in config["freeze"] if name not in TRAINED_PARTS]:
        raise ValueError(f"freeze={config['freeze']}: {unknown[0]!r} is not one of {', '.join(TRAINED_PARTS)}")
    trainer.find_cached(config["freeze"], augmentation, has_teachers="teachers" in config["loss"])
    if frozen := [part for part in read_lora(config.get("lora")) if part in config["freeze"]]:
        raise ValueError(
            f"freeze={config['freeze']} and lora.{frozen[0]}: adapters freeze the encoder already; remove one"
        )
    if "name" in config["dataset"]:
        check_name(config["dataset"]["name"], "dataset.name")
    if settings.exclude is not None:
        read_exclusions(settings.exclude)
    if settings.captions == "rewritten":
        read_rewritings(settings.rewritings)
    check_sources(config)
    if config["dataset"].get("test_fold") is not None:
        open_corpus(config["dataset"])
    if find_target(config["dataset"], Corpus) is Mixture:
        check_mixture(config["dataset"], settings)
    plan_evaluation_datasets(config)
    names_metrics = config["trainer"]["monitor"] or (config["study"] or {}).get("metrics")
    needs_corpora = names_metrics or config.get("evaluation_datasets")
    open_evaluators(config, find_splits(open_corpus(config["dataset"])) if needs_corpora else {})


def check_mixture(node: Mapping[str, Any], settings: DatasetSettings) -> None:
    """Check the options of the corpora of a mixture, and the files that they name besides their index."""
    for plan in plan_mixture(node["corpora"], node.get("weights")):
        for path in plan.use.get("exclude", ()):
            read_exclusions(path, key=f"{plan.key}.exclude")
        if plan.use.get("captions") == "rewritten" and settings.rewritings is None:
            raise ValueError(
                f"{plan.key}.captions=rewritten needs a file of rewritten captions; set dataset.rewritings"
            )


def check_schedule(optimizer: Mapping[str, Any]) -> None:
    """ValueError if the learning rates of a run do not fit together, as `build_optimizer` checks them."""
    numbers = {key: optimizer.get(key) for key in ("lr", "min_lr", "warmup_steps")}
    if all(isinstance(value, int | float) for value in numbers.values()):
        check_learning_rates(**numbers)


def open_evaluators(
    config: Mapping[str, Any], corpora: Mapping[str, Sequence[str]]
) -> "tuple[dict[str, Evaluator], dict[str, EvaluationDataset]]":
    """The evaluators of a run and its evaluation datasets, after checking that they compute the metrics that it names.

    Args:
        corpora: split -> names of the corpora with clips in it.
    """
    plans = open_evaluation_datasets(config, trained=set(itertools.chain(*corpora.values()))) if corpora else {}

    from clap.evaluation import evaluation_set, evaluator  # imports torch, which takes a second

    evaluators = evaluator.build_evaluators(config)
    others = {name: evaluation_set.EvaluationDataset.build(plan) for name, plan in plans.items()}
    for own in (evaluators, *(other.evaluators for other in others.values())):
        evaluator.check_training(own)
    evaluated = {kind: names for kind, names in corpora.items() if kind != "train"}
    metrics = {kind: [name for other in others.values() for name in other.name_metrics(kind)] for kind in SPLITS[1:]}
    evaluator.check_classifier(config, evaluators)
    evaluator.check_metrics(config, evaluators, evaluated, metrics if others else {})
    return evaluators, others


def check_sources(config: Mapping[str, Any]) -> None:
    """FileNotFoundError if a checkpoint that a run starts from does not exist."""
    if config["resume"] is not None:  # the run's checkpoint replaces the others
        checkpoint.find_resume(config["resume"], Path("nowhere"))
        return
    audio, text = config["audio_encoder"], config["text_encoder"]
    check_source("init_from", config["init_from"])
    for teacher in config["loss"].get("teachers", []):
        check_source("loss.teachers", teacher)
    check_source("audio_encoder.pretrained", audio.get("pretrained"))
    for key in ("pretrained", "tokenizer"):
        check_folder(f"text_encoder.{key}", text.get(key))


def check_source(key: str, source: str | bool | None) -> None:
    """FileNotFoundError if a checkpoint is neither a folder of this package nor possibly a published one."""
    if isinstance(source, str) and not is_published(source):
        try:
            checkpoint.find_file(checkpoint.find_best(Path(source)), checkpoint.CONFIG)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}: {error}") from None


def check_folder(key: str, source: str | bool | None) -> None:
    """FileNotFoundError if a local path does not exist; other names may be of the Hugging Face hub."""
    if isinstance(source, str) and source.startswith(("/", "./", "../", "~")) and not Path(source).exists():
        raise FileNotFoundError(
            f"{key}={source}: no such folder; correct the path, or give the name of a hub repository"
        )

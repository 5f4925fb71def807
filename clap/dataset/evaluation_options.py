"""The key `evaluation_datasets`: corpora that are evaluated besides the training corpus. Imports no torch."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import OmegaConf

from clap.config import find_conf_dir, read_config
from clap.config.values import suggest
from clap.corpus import Corpus
from clap.dataset.dataset_settings import SETTINGS_KEYS, DatasetSettings, read_dataset_settings
from clap.dataset.mixture import Mixture, Parts, PlannedPart, list_items, plan_part
from clap.dataset.registry import find_splits

KEY = "evaluation_datasets"
TRAINING_OPTIONS = ("captions", "exclude")  # settings that evaluation ignores
DECLARED = "override /evaluation@_global_.evaluation"  # in the defaults of the yaml of a corpus


@dataclass(frozen=True)
class PlannedDataset:
    """An evaluation dataset after the check of its options, before a file of it is read.

    Args:
        kind: option of the group `dataset`.
        evaluation: name -> config node of an evaluator.
        settings: those of the training corpus, and its own.
    """

    kind: str
    part: PlannedPart
    evaluation: dict[str, Mapping[str, Any]]
    settings: DatasetSettings

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus under its name; FileNotFoundError if its folder is missing."""
        return Parts([self.part.open(self.part.options.get("root"))])

    @functools.cached_property
    def splits(self) -> list[str]:
        """The splits that are evaluated, each of which has clips."""
        found = [split for split in find_splits(self.corpus) if split != "train"]
        if not found:
            raise ValueError(
                f"{self.part.key} has clips neither in val nor in test; choose them by {self.part.key}.splits, such as "
                "{test: [train]}"
            )
        return found

    def to_node(self) -> dict[str, Any]:
        """Its corpus and settings as a node of the group `dataset`."""
        options = {option: value for option, value in self.part.options.items() if option != "name"}
        options |= {"corpus": self.kind, "splits": self.part.use.get("splits")}
        target = f"{Mixture.__module__}.{Mixture.__qualname__}"
        return {"_target_": target, "corpora": {self.part.name: options}, **asdict(self.settings)}


def plan_evaluation_datasets(config: Mapping[str, Any]) -> dict[str, PlannedDataset]:
    """Check the evaluation datasets of a composed config, by the name that each has in metrics.

    Raises:
        ValueError: a kind, an option or an evaluator is unknown, missing or invalid.
    """
    return {name: plan_dataset(name, node, config) for name, node in (config.get(KEY) or {}).items()}


def open_evaluation_datasets(
    config: Mapping[str, Any], *, trained: Collection[str], split: str | None = None
) -> dict[str, PlannedDataset]:
    """The evaluation datasets of a composed config, by name, after their index files have been read.

    Args:
        trained: names of the corpora of `dataset`, which their metrics have too.
        split: that each must have; None: val or test.

    Raises:
        ValueError: an option is invalid, or a name is taken. FileNotFoundError: a folder or index is missing.
    """
    plans = plan_evaluation_datasets(config)
    if taken := [name for name in plans if name in trained]:
        raise ValueError(
            f"{KEY}.{taken[0]} is also a corpus of dataset, and both would have the same metrics; give it another "
            f"name, as {{{taken[0]}_2: {{corpus: {plans[taken[0]].kind}, ...}}}}"
        )
    for name, plan in plans.items():
        if split not in (None, *plan.splits):
            known = " and ".join(plan.splits)
            raise ValueError(f"{KEY}.{name} has clips in {known}, not in {split}; set {KEY}.{name}.splits or split")
    return {name: plan for name, plan in plans.items() if plan.splits}


def plan_dataset(name: str, node: Any, config: Mapping[str, Any]) -> PlannedDataset:
    """See `plan_evaluation_datasets`."""
    key = f"{KEY}.{name}"
    options = dict(node) if isinstance(node, Mapping) else node
    settings, chosen = {}, None
    if isinstance(options, dict):
        allowed = [option for option in SETTINGS_KEYS if option in options and option not in TRAINING_OPTIONS]
        settings = {option: options.pop(option) for option in allowed}
        chosen = options.get("evaluation")
    part = plan_part(name, options, key=key, is_mixed=False)
    kind = part.corpus_class.__module__.rpartition(".")[2]
    evaluation = choose_evaluators(chosen, kind, config["evaluation"], key)
    shared = {option: value for option, value in config["dataset"].items() if option not in TRAINING_OPTIONS}
    return PlannedDataset(kind, part, evaluation, read_dataset_settings(shared | settings))


def choose_evaluators(chosen: Any, kind: str, own: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """Name -> config node of the evaluators of an evaluation dataset.

    Args:
        chosen: names, or {name: options}; None: those that the yaml of the corpus declares, else those of the run.
        kind: option of the group `dataset`.
        own: the evaluators of the run, whose options replace those of the yaml.
    """
    if chosen is None and not (chosen := read_declared(kind)):
        return dict(own)
    options = chosen if isinstance(chosen, Mapping) else dict.fromkeys(list_items(chosen, f"{key}.evaluation"), None)
    if not options:
        raise ValueError(f"{key}.evaluation is empty; name an evaluator, or remove the key")
    known = sorted(path.stem for path in (find_conf_dir() / "evaluation").glob("*.yaml"))
    found = {}
    for name, changes in options.items():
        if name not in known and name not in own:
            raise ValueError(f"{key}.evaluation: {name!r} is not one of {', '.join(known)}{suggest(str(name), known)}")
        node = own[name] if name in own else read_config(find_conf_dir() / "evaluation" / f"{name}.yaml")
        if unknown := next((option for option in changes or {} if option not in node), None):
            raise ValueError(f"{key}.evaluation.{name} has no option {unknown}{suggest(str(unknown), node)}")
        found[name] = {**node, **(changes or {})}
    return found


def read_declared(kind: str) -> list[str] | None:
    """The evaluators that the yaml of a corpus declares; None if it declares none."""
    path = find_conf_dir() / "dataset" / f"{kind}.yaml"
    defaults = OmegaConf.to_container(OmegaConf.load(path)).get("defaults", []) if path.is_file() else []
    return next((item[DECLARED] for item in defaults if isinstance(item, Mapping) and DECLARED in item), None)

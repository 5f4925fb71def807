"""The model that a run trains, and its record: the config and the names of its options.

With `init_from`, encoders, frontend, tokenizer and fusion come from a checkpoint. The record is that of the model, not
of the options that were composed.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from clap import checkpoint
from clap.audio_encoder.base import AudioEncoder
from clap.classifier import ClapAudioClassifier
from clap.config import read_config
from clap.config.build import find_target
from clap.config.history import keep_config
from clap.config.saved import read_saved_yaml
from clap.config.values import CLASSIFIER
from clap.corpus import Corpus
from clap.dataset.class_names import list_classes
from clap.loss import ClassificationLoss
from clap.model import Clap
from clap.parts import PARTS, choose_parts, model_config
from clap.published.tower import NOT_SIZES
from clap.study.run_description import NO_TEXT

GROUPS = ("audio_encoder", "text_encoder", "fusion")


def open_model(
    config: Mapping[str, Any], corpus: Corpus, *, resume_from: Path | None, overrides: Sequence[str]
) -> Clap | ClapAudioClassifier:
    """The model of a run: a Clap, or with the key `classifier` a classifier of the labels of its training clips.

    The classifier has the audio encoder that `open_clap` returns, without a text encoder.

    Args:
        overrides: the parts that they set (`key=value`) do not come from `init_from`.
    """
    options = {"resume_from": resume_from, "overrides": overrides}
    if config.get(CLASSIFIER) is None:
        return open_clap(config, **options)
    class_names = list_classes(corpus)
    unused = {CLASSIFIER} if config["init_from"] else {CLASSIFIER, "text_encoder"}  # a checkpoint has its own
    clap = open_clap({**config, **dict.fromkeys(unused)}, **options)
    multi_label = find_target(config["loss"], ClassificationLoss).multi_label
    return ClapAudioClassifier(clap, class_names, multi_label=multi_label, **config[CLASSIFIER])


def open_clap(config: Mapping[str, Any], *, resume_from: Path | None, overrides: Sequence[str]) -> Clap:
    """A model from its config, with the parts and weights of `init_from`, or to resume from a checkpoint.

    A resumed run takes the parts from its own checkpoint, because that of `init_from` may have changed since.
    """
    init_from = config["init_from"]
    if init_from is None or resume_from is None:
        return Clap.init_from(init_from, config, overrides=overrides)
    saved = model_config(read_saved_yaml(checkpoint.find_file(resume_from, checkpoint.CONFIG)))
    clap = Clap.from_config(choose_parts(config, saved, overrides, init_from))
    if clap.text_encoder is not None:
        clap.tokenizer.load(checkpoint.find_file(resume_from, checkpoint.TOKENIZER))
    return clap


def record_config(cfg: DictConfig, clap: Clap | ClapAudioClassifier, run_dir: Path) -> dict[str, Any]:
    """Return the config of a run with the parts of its model, and record it in the folder `.hydra` of the run."""
    if cfg.init_from is not None or isinstance(clap, ClapAudioClassifier):
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.update({key: clap.config[key] for key in (*PARTS, CLASSIFIER) if key in clap.config})
            if "init_logit_scale" in cfg.loss:
                cfg.loss.init_logit_scale = clap.config["init_logit_scale"]
        file = run_dir / str(HydraConfig.get().output_subdir) / "config.yaml"
        if file.exists():
            OmegaConf.save(cfg, file)
    keep_config(run_dir)
    return read_config(cfg)


def name_options(cfg: DictConfig, clap: Clap | ClapAudioClassifier) -> dict[str, str]:
    """The option of each part of a model: the chosen one if it describes the part, else one that has its sizes.

    A part of which no option has the sizes is named by its class and millions of parameters, such as `HTSAT-28M`. The
    text encoder of a classifier is `none`.
    """
    composed, choices = read_config(cfg), HydraConfig.get().runtime.choices
    own = {group: clap.config[group] == composed[group] for group in GROUPS}
    return {
        group: choices[group] if is_chosen else find_option(group, clap) if clap.config[group] else NO_TEXT
        for group, is_chosen in own.items()
    }


def find_option(group: str, clap: Clap) -> str:
    """The first option of a group that has the class and sizes of the model's part, else class and size."""
    node, is_same = clap.config[group], {"audio_encoder": has_sizes, "text_encoder": is_same_transformer}.get(group)
    for option in GlobalHydra.instance().config_loader().get_group_options(group):
        other = OmegaConf.to_container(read_option(f"{group}/{option}"))
        if other.get("_target_") == node["_target_"] and (is_same(other, clap) if is_same else other == node):
            return option
    name = node["_target_"].rpartition(".")[2]
    if group == "fusion":
        return name
    if group == "text_encoder":
        name = clap.text_encoder.transformer.config.model_type
    return f"{name}-{sum(p.numel() for p in clap.get_submodule(group).parameters()) / 1e6:.2g}M"


def read_option(path: str) -> DictConfig:
    """The yaml of an option and those that it extends; composing it takes ten times as long."""
    loaded = GlobalHydra.instance().config_loader().repository.load_config(path)
    names = [item.path for item in loaded.defaults_list if isinstance(item, ConfigDefault) and item.path != "_self_"]
    return OmegaConf.merge(*(read_option(f"{path.rpartition('/')[0]}/{name}") for name in names), loaded.config)


def has_sizes(node: Mapping[str, Any], clap: Clap) -> bool:
    """Whether the model's audio encoder, of the same class, has the sizes of a config node."""
    own = clap.config["audio_encoder"]
    defaults = {key: p.default for key, p in inspect.signature(find_target(own, AudioEncoder)).parameters.items()}
    return all(own.get(key, defaults.get(key)) == value for key, value in node.items() if key not in NOT_SIZES)


def is_same_transformer(node: Mapping[str, Any], clap: Clap) -> bool:
    """Whether the model's text encoder has the type and the sizes, which are integers, of a config node."""
    config, sizes = clap.text_encoder.transformer.config, node["model"] or {}
    is_type = sizes.get("model_type") == config.model_type
    return is_type and all(getattr(config, key) == value for key, value in sizes.items() if isinstance(value, int))

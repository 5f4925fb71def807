"""Missing files of the jobs of a study: weights, tokenizers and corpora."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from clap import checkpoint
from clap.audio_encoder.base import AudioEncoder
from clap.config import find_absent
from clap.config.build import find_target
from clap.config.values import choose_weights
from clap.dataset.clips import ClapDataset
from clap.dataset.evaluation_options import plan_evaluation_datasets
from clap.model import Clap
from clap.parts import choose_parts, read_saved_config
from clap.published.hub import find_cached
from clap.published.load import read_published
from clap.published.sources import is_address, is_published

# Any of these in the cache of the Hugging Face hub shows that a name was downloaded.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")


def list_missing(config: Mapping[str, Any]) -> Iterator[str]:
    """Missing files of a run: weights and tokenizers that are not in the cache, a corpus."""
    text, audio = config["text_encoder"], config["audio_encoder"]
    source = choose_weights("text_encoder", text["pretrained"], text["name"])
    if source not in (None, "???") and not is_cached(source, WEIGHTS):
        yield f"text encoder {source}, {describe_size(config)}"
    tokenizer = text["tokenizer"] or text["name"]
    if tokenizer not in ("train", "???", source) and not is_cached(tokenizer, TOKENIZER):
        yield f"tokenizer {tokenizer}, a few MB"
    source = find_target(audio, AudioEncoder).find_weights(audio.get("pretrained", False), audio.get("name"))
    if source not in (None, "???") and not is_cached(source, WEIGHTS):
        yield f"audio encoder {source}, {describe_size(config, part='audio_encoder')}"
    try:
        open_train_set({**config, "evaluation_datasets": {}})  # which are listed next
    except FileNotFoundError as error:
        yield f"dataset {config['dataset']['_target_'].split('.')[-1]}: {error}"
    for plan in plan_evaluation_datasets(config).values():
        try:
            plan.corpus  # noqa: B018, opens it
        except FileNotFoundError as error:
            yield f"evaluation dataset {error}"


def is_cached(name: str, files: Sequence[str]) -> bool:
    """Whether a file of a hub name is in the local cache, or the name is a local path."""
    if is_address(name):
        return find_cached(name).exists()
    repository, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        if not Path(name).exists() and file:
            return isinstance(try_to_load_from_cache(repository, file), str)
        return Path(name).exists() or any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except HFValidationError:  # the name of a folder that is not there
        return False


def describe_size(config: Mapping[str, Any], part: str = "text_encoder") -> str:
    """Size of a part's weights, if the config determines it."""
    try:
        encoder = build_on_meta(config).get_submodule(part)
    except ValueError:  # its sizes come with the weights
        return "of unknown size"
    return f"about {4 * count_parameters(encoder) / 1e6:.0f} MB"


def read_initial(config: Mapping[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """The parts of the model that trains: those of init_from's checkpoint, except those that overrides name.

    Raises:
        FileNotFoundError: the checkpoint does not exist, or is not downloaded.
        ValueError: an override sets a key inside a part that the checkpoint defines.
    """
    source = config["init_from"]
    if source is None:
        return {}
    if not is_published(source):
        stored = read_saved_config(checkpoint.find_best(Path(source)))
    elif Path(source).exists():
        stored = read_published(source)[1]
    else:
        raise FileNotFoundError(f"{source}, to be downloaded")
    return choose_parts(config, stored, lines, source)


def open_train_set(config: Mapping[str, Any]) -> ClapDataset:
    """The training split.

    Raises:
        FileNotFoundError: a key of the dataset is not given, or its files are missing.
    """

    if absent := find_absent(config["dataset"], "dataset."):
        raise FileNotFoundError(absent)
    return ClapDataset(config=config)


def build_on_meta(config: Mapping[str, Any]) -> Clap:
    """The model with sizes but without weights, frozen parts included."""
    config = copy.deepcopy(dict(config))
    text = config["text_encoder"]
    source = choose_weights("text_encoder", text["pretrained"], text["name"])
    if source and not text["model"] and is_cached(source, ("config.json",)):
        text["model"] = AutoConfig.from_pretrained(source, local_files_only=True).to_diff_dict()
    for part in ("audio_encoder", "text_encoder"):
        if "pretrained" in config[part]:
            config[part]["pretrained"] = False
    with torch.device("meta"):
        clap = Clap.from_config(config)
    clap.freeze(config["freeze"] if config["trainer"].get("unfreeze_at") is None else [])  # as the costliest step
    return clap


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

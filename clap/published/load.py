"""A published checkpoint as what Clap.from_ckpt builds: a config in our words and weights under our names."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clap.audio import LogMelSpectrogram
from clap.config import flatten
from clap.config.values import suggest_key
from clap.published.files import read_json_file, read_state_dict
from clap.published.hub import CONFIG, PREPROCESSOR, fetch_source
from clap.published.keys import MEL, UNUSED, recognise, rename
from clap.published.layouts import describe

MEL_TOLERANCE = 1e-5  # between the bank of a file and ours; a wrong one is off by 1e-3 or more
SCALES = "published_logit_scales"  # key of a config that only LAION-CLAP's and Hugging Face's weights bring
SHOWN = 4  # keys of each kind in an error


def read_published(source: str, settings: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any], dict]:
    """Family, config and weights of a published checkpoint.

    Args:
        source: a file, a Hugging Face folder, or a name on the hub.
        settings: values of the config that no tensor tells, under dotted keys, such as `text_encoder.tokenizer`.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, it is damaged, refused, or of no known family.
    """
    path = fetch_source(str(source))
    weights = read_state_dict(path)
    folder = path if path.is_dir() else path.parent
    files = {name: read_json_file(folder / name) if path.is_dir() else {} for name in (CONFIG, PREPROCESSOR)}
    family = recognise(list(weights), str(source))
    with one_line_errors(str(source)):
        weights = rename(weights, family)
        config = describe(weights, family.name, files, str(source))
    if family.name == "huggingface" and (folder / "tokenizer_config.json").is_file():
        config["text_encoder"]["tokenizer"] = str(folder)
    apply_overrides(config, settings or {})
    scales = {"audio": weights.get("logit_scale"), "text": weights.get("logit_scale_t")}
    if all(scale is not None and scale.numel() == 1 for scale in scales.values()):
        # The second has no part in embeddings or similarity; clap.published.export gives it back.
        config[SCALES] = {name: scale.item() for name, scale in scales.items()}
    if config["text_encoder"] is None:
        weights.setdefault("logit_scale", torch.tensor(math.log(config["init_logit_scale"])))
    return family.name, config, weights


@contextlib.contextmanager
def one_line_errors(where: str) -> Iterator[None]:
    """Tensors and configs of sizes or kinds that no model has end in one clear error, wherever they are noticed."""
    try:
        yield
    except Exception as error:  # of torch, transformers or timm, which check sizes in their own ways
        line = " ".join(str(error).split())[:300]
        if isinstance(error, ValueError) and line.startswith(f"{where}: "):
            raise
        what = f"there is no {line}" if isinstance(error, KeyError) else line or type(error).__name__
        raise ValueError(f"{where}: its tensors and configs are those of no known model ({what})") from None


def apply_overrides(config: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Replace values of a nested config, under dotted keys.

    Raises:
        ValueError: the config has no such key.
    """
    known = dict(flatten(config))
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"{key}={value}: the checkpoint's config has no such key{suggest_key(key, known)}")
        parent, _, last = key.rpartition(".")
        (known[parent] if parent else config)[last] = value


@contextlib.contextmanager
def no_weights() -> Iterator[None]:
    """Modules built here have parameters of a shape and no memory; buffers are real."""
    register = nn.Module.register_parameter

    def register_shape(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_shape
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Give a model the weights, strictly: keys that no table leaves out must fit, each one.

    Raises:
        ValueError: keys are missing or unexpected, a shape differs, or the file has another filter bank.
    """
    own = model.state_dict()
    counters = {key: torch.zeros((), dtype=torch.long) for key in own if key.endswith("num_batches_tracked")}
    poolers = {key for key in weights if ".pooler." in key and key not in own}
    given = {key: value for key, value in weights.items() if not UNUSED.search(key) and key not in poolers}
    given = counters | given
    check_keys(own, given, where)
    check_filters(model, weights, where)
    model.load_state_dict(given, assign=True)
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # of timm, made on its parameters' device
            module.init_non_persistent_buffers()


def check_keys(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    both = sorted(own.keys() & given.keys())
    shapes = [key for key in both if own[key].shape != given[key].shape]
    types = [key for key in both if own[key].is_floating_point() != given[key].is_floating_point()]
    problems = [
        f"{len(keys)} {what} ({group_keys(keys)})"
        for what, keys in (
            ("missing", own.keys() - given.keys()),
            ("unexpected", given.keys() - own.keys()),
            ("of another shape", shapes),
            ("of another type", types),
        )
        if keys
    ]
    if shapes:
        problems.append(f"{shapes[0]} is {tuple(given[shapes[0]].shape)}, it should be {tuple(own[shapes[0]].shape)}")
    if problems:
        raise ValueError(f"{where}: tensors do not fit the model that they tell of: {'; '.join(problems)}")


def group_keys(keys: Iterable[str]) -> str:
    """Keys that differ in numbers only as one, such as `12 layers.*.norm1.weight`; at most SHOWN of them."""
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", key), []).append(key)
    shown = [f"{len(members)} {name}" if len(members) > 1 else members[0] for name, members in groups.items()]
    more = [f"{len(shown) - SHOWN} more kinds"] if len(shown) > SHOWN else []
    return ", ".join([*shown[:SHOWN], *more])


def check_filters(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse a filter bank in the file other than the one that the frontend builds, where the model uses it."""
    stored = weights.get(MEL)
    frontend: LogMelSpectrogram = model.audio_encoder.frontend
    if stored is None or frontend.mel_scale != "slaney":
        return
    if stored.shape != frontend.mel.shape or (stored - frontend.mel).abs().max() > MEL_TOLERANCE:
        raise ValueError(
            f"{where}: its filter bank {tuple(stored.shape)} is not that of {frontend.sample_rate} Hz, "
            f"{frontend.f_min:g} to {frontend.f_max:g} Hz; give its own as settings of audio_encoder.frontend"
        )


def read_audio_tower(source: str, settings: Mapping[str, Any] | None = None) -> tuple[dict, dict, dict[str, Tensor]]:
    """Nodes of the audio encoder and its fusion, and the encoder's weights, of any published checkpoint."""
    _, config, weights = read_published(source, settings)
    kept = {key: value for key, value in weights.items() if key.startswith("audio_encoder.")}
    return config["audio_encoder"], config["fusion"], kept

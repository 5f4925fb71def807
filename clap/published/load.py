"""Read a published checkpoint as a config and weights of `Clap`."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clap.audio import LogMelSpectrogram
from clap.checkpoint import check_finite
from clap.config import flatten
from clap.config.secrets import hide_secrets
from clap.config.values import suggest_key
from clap.published.files import read_json_file, read_state_dict
from clap.published.hub import fetch_source
from clap.published.keys import MEL, UNUSED, find_family, rename
from clap.published.layouts import describe
from clap.published.sources import CONFIG, PREPROCESSOR

MEL_TOLERANCE = 1e-5  # absolute, between filter banks; a wrong bank differs by 1e-3 or more
SCALES = "published_logit_scales"  # config key, only for weights of LAION-CLAP and Hugging Face
SHOWN = 4  # groups of keys of each kind in an error


def read_published(source: str, settings: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any], dict]:
    """Family, config and weights of a published checkpoint.

    Args:
        source: a file, a Hugging Face folder, a URL, or a name on the hub.
        settings: {dotted key: value} of the config, such as `text_encoder.tokenizer`, for values not in the weights.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, refused, or of an unknown family.
    """
    path, where = fetch_source(str(source)), hide_secrets(str(source))
    weights = read_state_dict(path)
    folder = path if path.is_dir() else path.parent
    files = {name: read_json_file(folder / name) if path.is_dir() else {} for name in (CONFIG, PREPROCESSOR)}
    family = find_family(list(weights), where)
    with one_line_errors(where):
        weights = rename(weights, family)
        config = describe(weights, family.name, files, where)
    if family.name == "huggingface" and (folder / "tokenizer_config.json").is_file():
        config["text_encoder"]["tokenizer"] = str(folder)
    apply_overrides(config, settings or {})
    scales = {"audio": weights.get("logit_scale"), "text": weights.get("logit_scale_t")}
    if all(scale is not None and scale.numel() == 1 for scale in scales.values()):
        # Embeddings and similarity do not use the second; clap.published.export writes it.
        config[SCALES] = {name: scale.item() for name, scale in scales.items()}
    if config["text_encoder"] is None:
        weights.setdefault("logit_scale", torch.tensor(math.log(config["init_logit_scale"])))
    return family.name, config, weights


@contextlib.contextmanager
def one_line_errors(where: str) -> Iterator[None]:
    """Turn exceptions about inconsistent tensors or configs into a ValueError of one line that starts with `where`."""
    try:
        yield
    except Exception as error:  # torch, transformers and timm raise various types
        line = " ".join(str(error).split())[:300]
        if isinstance(error, ValueError) and line.startswith(f"{where}: "):
            raise
        what = f"missing key {line}" if isinstance(error, KeyError) else line or type(error).__name__
        raise ValueError(f"{where}: its tensors and configs do not describe a known model ({what})") from None


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
    """Build modules with parameters on the meta device, without memory; buffers are allocated."""
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
    """Load weights strictly: all keys must match, except those in UNUSED and poolers that the model lacks.

    Raises:
        ValueError: keys are missing or unexpected, a shape or type differs, a value is not finite, or the file has
            another filter bank.
    """
    own = model.state_dict()
    counters = {key: torch.zeros((), dtype=torch.long) for key in own if key.endswith("num_batches_tracked")}
    poolers = {key for key in weights if ".pooler." in key and key not in own}
    given = {key: value for key, value in weights.items() if not UNUSED.search(key) and key not in poolers}
    given = counters | given
    check_keys(own, given, where)
    check_finite(given, where)
    check_filter_bank(model, weights, where)
    model.load_state_dict(given, assign=True)
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # timm creates them on the device of the parameters
            module.init_non_persistent_buffers()


def check_keys(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Check that `given` has the keys, shapes and kinds of dtype of `own`.

    Raises:
        ValueError: they differ.
    """
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
        problems.append(f"{shapes[0]} is {tuple(given[shapes[0]].shape)}; expected {tuple(own[shapes[0]].shape)}")
    if problems:
        raise ValueError(f"{where}: tensors do not match the model that they describe: {'; '.join(problems)}")


def group_keys(keys: Iterable[str]) -> str:
    """Text with one entry for keys that differ only in numbers: `12 layers.*.norm1.weight`; at most SHOWN entries."""
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", key), []).append(key)
    shown = [f"{len(members)} {name}" if len(members) > 1 else members[0] for name, members in groups.items()]
    more = [f"{len(shown) - SHOWN} more kinds"] if len(shown) > SHOWN else []
    return ", ".join([*shown[:SHOWN], *more])


def check_filter_bank(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Check the file's filter bank, (n_fft / 2 + 1, n_mels), against that of a frontend with Slaney filters.

    Raises:
        ValueError: they differ.
    """
    stored = weights.get(MEL)
    frontend: LogMelSpectrogram = model.audio_encoder.frontend
    if stored is None or frontend.mel_scale != "slaney":
        return
    if stored.shape != frontend.mel.shape or (stored - frontend.mel).abs().max() > MEL_TOLERANCE:
        raise ValueError(
            f"{where}: its filter bank {tuple(stored.shape)} is not that of {frontend.sample_rate} Hz, "
            f"{frontend.f_min:g} to {frontend.f_max:g} Hz; set audio_encoder.frontend.* with the `settings` argument"
        )


def read_audio_tower(source: str, settings: Mapping[str, Any] | None = None) -> tuple[dict, dict, dict[str, Tensor]]:
    """Config nodes of audio encoder and fusion, and weights under `audio_encoder.`, of any published checkpoint."""
    _, config, weights = read_published(source, settings)
    weights = {key: value for key, value in weights.items() if key.startswith("audio_encoder.")}
    return config["audio_encoder"], config["fusion"], weights

"""The parts of a model, built from its config: encoders, fusion and projections, random or pretrained."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clap import checkpoint, lora
from clap.audio_encoder.base import AudioEncoder
from clap.config.build import build, build_module, find_target
from clap.config.lora_settings import read_lora
from clap.config.saved import read_saved_yaml
from clap.config.values import CLASSIFIER
from clap.fusion import OneWindow
from clap.published.load import SCALES
from clap.published.tower import load_tower, open_tower

# Keys of a config that rebuild the model.
PARTS = ("audio_encoder", "text_encoder", "fusion", "projection", "embed_dim", "init_logit_scale")


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a composed config that rebuilds the model."""
    if missing := [key for key in PARTS if key not in config]:
        raise ValueError(
            f"the config has no {', '.join(missing)}; give a composed one, as `train.py --cfg job` prints it"
        )
    adapters = {lora.KEY: config[lora.KEY]} if read_lora(config.get(lora.KEY)) else {}
    head = {CLASSIFIER: config[CLASSIFIER]} if config.get(CLASSIFIER) else {}
    return {key: config[key] for key in (*PARTS, SCALES) if key in config} | adapters | head


def check_has_no_head(config: dict[str, Any], where: str = "the config") -> dict[str, Any]:
    """Return the config of a model; ValueError if it is that of a classifier."""
    if CLASSIFIER in config:
        raise ValueError(
            f"{where} is of a ClapAudioClassifier, which has class names and no text encoder; load it with "
            "ClapAudioClassifier.from_ckpt, or give the checkpoint that it was trained from"
        )
    return config


def read_saved_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint folder, with the path of its tokenizer if it contains one."""
    config = model_config(read_saved_yaml(checkpoint.find_file(folder, checkpoint.CONFIG)))
    text = config["text_encoder"]
    for part in (config["audio_encoder"], text):
        if part is not None and "pretrained" in part:
            part["pretrained"] = False  # the weights are in the folder, whatever its config says
    if text is None:
        return config
    try:
        text["tokenizer"] = str(checkpoint.find_file(folder, checkpoint.TOKENIZER))
    except FileNotFoundError:
        if text.get("tokenizer") == "train":  # exists only in the checkpoint
            raise
    return config


def build_audio_encoder(node: Mapping[str, Any], fusion: Mapping[str, Any]) -> AudioEncoder:
    """The audio encoder with its fusion, with random weights or those of `pretrained` and `name`.

    Raises:
        ValueError: a fusion other than `none` for an encoder without fusion.
    """
    encoder_class, policy = find_target(node, AudioEncoder), build_module(fusion)
    runtime = {"fusion": policy} if encoder_class.takes_fusion else {}
    if not encoder_class.takes_fusion and not isinstance(policy, OneWindow):
        raise ValueError(
            f"fusion={type(policy).__name__}: {encoder_class.__name__} does not support fusion; set fusion=none, or an "
            "audio_encoder on a log-mel spectrogram"
        )
    if encoder_class.loads_weights:
        return build(node, AudioEncoder, **runtime)
    source = encoder_class.find_weights(node.get("pretrained", False), node.get("name"))
    node = {key: value for key, value in node.items() if key not in ("pretrained", "name")}
    tower = None if source is None else open_tower(source, node)
    encoder = build(node, AudioEncoder, **runtime)
    if tower is not None:
        load_tower(encoder, fusion, tower)
    return encoder


def build_parts(config: Mapping[str, Any]) -> tuple[nn.Module | None, ...]:
    """Audio encoder, text encoder and their projections; random weights depend on this order."""
    embed_dim = config["embed_dim"]
    if embed_dim < 1:
        raise ValueError(f"embed_dim={embed_dim} is not 1 or more; set embed_dim")
    audio_encoder = build_audio_encoder(config["audio_encoder"], config["fusion"])
    text_encoder = build_module(config["text_encoder"]) if config["text_encoder"] else None  # clapcap has none
    project = build_module(config["projection"])
    audio_projection = project(audio_encoder.output_dim, embed_dim)
    text_projection = project(text_encoder.output_dim, embed_dim) if text_encoder else None
    lora.add_adapters({"audio_encoder": audio_encoder, "text_encoder": text_encoder}, config.get(lora.KEY))
    return audio_encoder, text_encoder, audio_projection, text_projection


def parts_to_rebuild(overrides: Sequence[str], ckpt: str | os.PathLike) -> set[str]:
    """Parts of the model that overrides (`key=value`) replace in a checkpoint; projections follow their encoder.

    Raises:
        ValueError: an override sets a key inside a part that the checkpoint defines.
    """
    named = {override.lstrip("+").split("=")[0] for override in overrides}
    for key in sorted(named):
        part = key.split(".")[0]
        if part in PARTS and part not in named:
            raise ValueError(
                f"{key} has no effect, because init_from={ckpt} defines its own {part}; "
                f"add {part}=... to train it from scratch"
            )
    if named & {"loss", "loss.init_logit_scale"}:
        named.add("init_logit_scale")
    if named & {"projection", "embed_dim"}:
        named |= {"audio_projection", "text_projection"}
    return named | {name.replace("encoder", "projection") for name in named & {"audio_encoder", "text_encoder"}}


def choose_parts(
    config: Mapping[str, Any], source: Mapping[str, Any], overrides: Sequence[str], ckpt: str | os.PathLike
) -> dict[str, Any]:
    """The config of a model with the parts of a checkpoint's config `source`, except those that overrides replace.

    Adapters are those of `config`: a checkpoint has merged its own.

    Raises:
        ValueError: an override sets a key inside a part that the checkpoint defines.
    """
    named = parts_to_rebuild(overrides, ckpt)
    parts = {key: config[key] if key in named else source[key] for key in PARTS}
    return parts | {lora.KEY: config.get(lora.KEY)}


def load_part(part: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly, except those of the fusion's modules, which a new fusion initialises, and of adapters.

    Raises:
        ValueError: tensors are missing or unexpected, or have other shapes.
    """
    try:
        missing, unexpected = part.load_state_dict(lora.with_adapters(part, weights), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit the model: {' '.join(str(error).split())[:300]}") from None
    mismatched = [key for key in [*missing, *unexpected] if not {"merge", "local_proj"} & set(key.split("."))]
    if mismatched:
        raise ValueError(
            f"{where} does not fit the model: {len(mismatched)} missing or unexpected tensors, first {mismatched[0]}"
        )

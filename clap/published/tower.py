"""The audio tower of a published checkpoint, or of one of ours, as the start of an audio encoder."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clap import checkpoint
from clap.audio import LogMelSpectrogram
from clap.config import read_config
from clap.published.hub import is_published
from clap.published.keys import AUDIO, UNUSED
from clap.published.load import check_keys, read_audio_tower

log = logging.getLogger(__name__)

Node = Mapping[str, Any]

CNN14, HTSAT = "clap.audio_encoder.cnn14.Cnn14", "clap.audio_encoder.htsat.HTSAT"
# What tells the yaml that has the sizes of some weights.
OPTIONS = {
    "cnn14": {"_target_": CNN14, "width": 64},
    "htsat_tiny": {"_target_": HTSAT, "embed_dim": 96, "depths": [2, 2, 6, 2]},
    "htsat_base": {"_target_": HTSAT, "embed_dim": 128, "depths": [2, 2, 12, 2]},
    "htsat_large": {"_target_": HTSAT, "embed_dim": 256, "depths": [2, 2, 12, 2]},
}
NOT_SIZES = {"frontend", "spec_augment", "dropout", "last_dropout", "drop_path", "name", "pretrained"}
FUSION_PARTS = {"merge", "local_proj"}
FIRST_LAYERS = ("trunk.patch_embed.proj.weight", "conv_block1.conv1.weight")  # as many channels as the fusion has views


@dataclass
class Tower:
    """An audio encoder of a checkpoint: the config node of its fusion, and weights under keys of `audio_encoder.`."""

    source: str
    fusion: Node
    weights: dict[str, Tensor]


def open_tower(source: str, node: Node) -> Tower:
    """The audio tower of a checkpoint for an encoder of a config node, whose frontend stays; differences are logged.

    Args:
        source: a published file, folder or hub name, of a whole CLAP or of an audio tower alone; or one of our folders.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or has other sizes.
    """
    where = f"audio_encoder.pretrained={source}"
    theirs, fusion, weights = read_tower(source)
    check_sizes(node, theirs, where)
    if differences := list_differences(
        fill_defaults(node.get("frontend", {})), fill_defaults(theirs.get("frontend", {}))
    ):
        log.info("%s: the frontend is the config's, which differs: %s", where, "; ".join(differences))
    return Tower(source, fusion, weights)


def load_tower(encoder: nn.Module, fusion: Node, tower: Tower) -> None:
    """Give an audio encoder with a fusion the weights of a tower; what the tower's fusion does not have stays as it is.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    own = encoder.state_dict()
    given = {key.removeprefix(AUDIO): value for key, value in tower.weights.items() if not UNUSED.search(key)}
    new: set[str] = set()
    if has_other_fusion(fusion, tower.fusion):
        given = {key: value for key, value in given.items() if not FUSION_PARTS & set(key.split("."))}
        new = {key for key in own if FUSION_PARTS & set(key.split("."))}
        new |= {key for key in FIRST_LAYERS if key in given and own[key].shape != given[key].shape}
    counters = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith("num_batches_tracked")}
    given = {key: value for key, value in (counters | given).items() if key not in new}
    check_keys({key: value for key, value in own.items() if key not in new}, given, tower.source)
    encoder.load_state_dict(given, strict=False)
    log.info("audio_encoder: from %s", tower.source)
    if new:
        log.info("audio_encoder: new for its fusion: %s", ", ".join(sorted({name_module(key) for key in new})))


def read_tower(source: str) -> tuple[Node, Node, dict[str, Tensor]]:
    """Config nodes of the audio encoder and its fusion, and weights under keys of `audio_encoder.`."""
    if is_published(source):
        return read_audio_tower(source)
    folder = checkpoint.find_best(Path(source))
    config = read_config(checkpoint.find_file(folder, checkpoint.CONFIG))
    weights = {key: value for key, value in checkpoint.read_weights(folder).items() if key.startswith(AUDIO)}
    return config.get("audio_encoder", {}), config.get("fusion", {}), weights


def check_sizes(node: Node, theirs: Node, where: str) -> None:
    """Refuse weights of another architecture or other sizes, naming the yaml that has them.

    Raises:
        ValueError: see above.
    """
    named = {key: value for key, value in node.items() if key not in NOT_SIZES}
    differences = [
        f"{key}={theirs[key]}, the config has {value}"
        for key, value in named.items()
        if key in theirs and theirs[key] != value
    ]
    mels, their_mels = (fill_defaults(item.get("frontend", {})).get("n_mels") for item in (node, theirs))
    if mels != their_mels:
        differences.append(f"frontend.n_mels={their_mels}, the config has {mels}")
    if differences:
        options = [name for name, sizes in OPTIONS.items() if sizes.items() <= theirs.items()]
        hint = f"audio_encoder={options[0]} has these sizes" if options else "set them as keys of audio_encoder"
        raise ValueError(f"{where}: the weights have {'; '.join(differences)}; {hint}")


def fill_defaults(frontend: Node) -> Node:
    """A frontend's node with the values that it leaves to their defaults."""
    known = signature(LogMelSpectrogram).parameters.values()
    return {item.name: item.default for item in known if item.default is not Parameter.empty} | frontend


def list_differences(config: Node, theirs: Node) -> list[str]:
    keys = [key for key in config if key in theirs and config[key] != theirs[key]]
    return [f"{key}={config[key]} (the weights were trained with {theirs[key]})" for key in keys]


def has_other_fusion(fusion: Node, theirs: Node) -> bool:
    """Do the fusions have other modules inside the encoder? Windows that are averaged need none."""

    def inside(node: Node) -> Any:
        return node.get("merge", "none") if str(node.get("_target_")).endswith("GlobalAndLocal") else "none"

    return inside(fusion) != inside(theirs)


def name_module(key: str) -> str:
    """`trunk.patch_embed.merge` of `trunk.patch_embed.merge.local_att.0.weight`; another tensor's module."""
    parts = key.split(".")
    inside = [index for index, part in enumerate(parts) if part in FUSION_PARTS]
    return ".".join(parts[: inside[0] + 1] if inside else parts[:-1])

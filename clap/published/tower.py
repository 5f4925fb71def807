"""Initial weights of an audio encoder from a published checkpoint or from one of this package."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from clap import checkpoint
from clap.audio import LogMelSpectrogram
from clap.config.build import find_target
from clap.config.saved import read_saved_yaml
from clap.config.secrets import hide_secrets
from clap.fusion import GlobalAndLocal
from clap.published.hub import fetch_own
from clap.published.keys import AUDIO, UNUSED
from clap.published.load import check_keys, read_audio_tower

log = logging.getLogger(__name__)

Node = Mapping[str, Any]

CNN14, HTSAT = "clap.audio_encoder.cnn14.Cnn14", "clap.audio_encoder.htsat.HTSAT"
# Options of the group audio_encoder and the sizes that identify them.
OPTIONS = {
    "cnn14": {"_target_": CNN14, "width": 64},
    "htsat_tiny": {"_target_": HTSAT, "embed_dim": 96, "depths": [2, 2, 6, 2]},
    "htsat_base": {"_target_": HTSAT, "embed_dim": 128, "depths": [2, 2, 12, 2]},
    "htsat_large": {"_target_": HTSAT, "embed_dim": 256, "depths": [2, 2, 12, 2]},
}
NOT_SIZES = {"frontend", "spec_augment", "dropout", "last_dropout", "drop_path", "name", "pretrained"}
FUSION_PARTS = {"merge", "local_proj"}
FIRST_LAYERS = ("trunk.patch_embed.proj.weight", "conv_block1.conv1.weight")  # one input channel per view


@dataclass
class Tower:
    """An audio encoder of a checkpoint: the config node of its fusion, and weights under keys of `audio_encoder.`."""

    source: str
    fusion: Node
    weights: dict[str, Tensor]


def open_tower(source: str, node: Node) -> Tower:
    """Read the audio tower of a checkpoint for an encoder; logs where its frontend differs from that of the node.

    Args:
        source: a published file, folder, URL or hub name of a CLAP or of an audio tower; or a folder of this package.
        node: the config of the encoder.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, or has other sizes.
    """
    stored, fusion, weights = read_tower(source)
    source = hide_secrets(source)
    where = f"audio_encoder.pretrained={source}"
    check_sizes(node, stored, where)
    if differences := list_differences(
        fill_defaults(node.get("frontend", {})), fill_defaults(stored.get("frontend", {}))
    ):
        log.info("%s: the frontend of the config is used; it differs in %s", where, "; ".join(differences))
    return Tower(source, fusion, weights)


def load_tower(encoder: nn.Module, fusion: Node, tower: Tower) -> None:
    """Load the weights of a tower; modules of a fusion that the tower does not have keep their initial weights.

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
    checkpoint.check_finite(given, tower.source)
    encoder.load_state_dict(given, strict=False)
    log.info("audio_encoder: weights from %s", tower.source)
    if new:
        log.info("audio_encoder: random weights in %s", ", ".join(sorted({name_module(key) for key in new})))


def read_tower(source: str) -> tuple[Node, Node, dict[str, Tensor]]:
    """Config nodes of the audio encoder and its fusion, and weights under keys of `audio_encoder.`."""
    if (own := fetch_own(source)) is None:
        return read_audio_tower(source)
    folder = checkpoint.find_best(own)
    config = read_saved_yaml(checkpoint.find_file(folder, checkpoint.CONFIG))
    weights = {key: value for key, value in checkpoint.read_weights(folder).items() if key.startswith(AUDIO)}
    return config.get("audio_encoder", {}), config.get("fusion", {}), weights


def check_sizes(node: Node, stored: Node, where: str) -> None:
    """Check that weights have the architecture and sizes of a node.

    Raises:
        ValueError: they differ; the message names the option that has their sizes, if there is one.
    """
    named = {key: value for key, value in node.items() if key not in NOT_SIZES}
    differences = [
        f"{key}={stored[key]}, the config has {value}"
        for key, value in named.items()
        if key in stored and stored[key] != value
    ]
    mels, stored_mels = (fill_defaults(item.get("frontend", {})).get("n_mels") for item in (node, stored))
    if mels != stored_mels:
        differences.append(f"frontend.n_mels={stored_mels}, the config has {mels}")
    if differences:
        options = [name for name, sizes in OPTIONS.items() if sizes.items() <= stored.items()]
        hint = f"audio_encoder={options[0]} has these sizes" if options else "set them as keys of audio_encoder"
        raise ValueError(f"{where}: the weights have {'; '.join(differences)}; {hint}")


def fill_defaults(frontend: Node) -> Node:
    """A frontend node with the default values of missing keys."""
    known = signature(LogMelSpectrogram).parameters.values()
    return {item.name: item.default for item in known if item.default is not Parameter.empty} | frontend


def list_differences(config: Node, stored: Node) -> list[str]:
    keys = [key for key in config if key in stored and config[key] != stored[key]]
    return [f"{key}={config[key]} (the weights were trained with {stored[key]})" for key in keys]


def has_other_fusion(fusion: Node, stored: Node) -> bool:
    """Whether the fusions have different modules inside the encoder; averaging windows needs none."""

    def inside(node: Node) -> Any:
        has_local_views = bool(node) and issubclass(find_target(node, nn.Module), GlobalAndLocal)
        return node.get("merge") if has_local_views else "none"

    return inside(fusion) != inside(stored)


def name_module(key: str) -> str:
    """Module of a key; for keys in a part of a fusion, that part: `trunk.patch_embed.merge`."""
    parts = key.split(".")
    inside = [index for index, part in enumerate(parts) if part in FUSION_PARTS]
    return ".".join(parts[: inside[0] + 1] if inside else parts[:-1])

"""Writing a model: config, weights and tokenizer of a checkpoint folder, and the same model for transformers."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor, nn

from clap import checkpoint, lora
from clap.atomic import name_file

log = logging.getLogger(__name__)


class PlainDumper(yaml.SafeDumper):
    """Writes a list that occurs twice twice; aliases are refused when a config is read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_pretrained(clap: nn.Module, folder: Path, *, huggingface: bool) -> None:
    """Write a checkpoint folder atomically, with a subfolder for transformers if `huggingface`."""
    names = (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TOKENIZER, checkpoint.TRAIN_CLIPS)
    checkpoint.refuse_other_files(folder, (*names, checkpoint.HUGGING_FACE))

    def write(temporary: Path) -> None:
        clap.save(temporary)
        if huggingface:
            export_huggingface(clap, temporary / checkpoint.HUGGING_FACE)

    checkpoint.write_folder(folder, write)


def write_model(
    clap: nn.Module,
    folder: Path,
    extra: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    *,
    same: Path | None = None,
) -> None:
    """Write config, weights and tokenizer of a Clap into an existing folder; `extra` is added to the config.

    Args:
        weights: instead of the model's own, of which it may have a part only; by default with merged adapters.
        same: a file with the same weights, to which the new one becomes a hard link.

    Raises:
        ValueError: the model was not built from a config.
    """
    if clap.config is None:
        raise ValueError("this model has no config to save; build it with Clap.from_config or Clap.from_ckpt")
    config = make_self_contained(clap, {**clap.config, **(extra or {})})
    weights = lora.merge_weights(clap, clap.state_dict()) if weights is None else weights
    if not lora.has_adapters(weights):
        config.pop(lora.KEY, None)
    text = yaml.dump(config, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
    (folder / checkpoint.CONFIG).write_text(text, encoding="utf-8")
    if same is None:
        write_weights(folder / checkpoint.WEIGHTS, weights)
    else:
        checkpoint.link_file(same, folder / checkpoint.WEIGHTS)
    if clap.text_encoder is not None:
        write_tokenizer(clap, folder)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights to a safetensors file."""
    # Copies: safetensors refuses weights that share memory, as T5's embeddings do.
    weights = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    with name_file(path):
        safetensors.torch.save_file(weights, path)


def make_self_contained(clap: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """The config with `pretrained` off, because the checkpoint contains the weights."""
    if clap.text_encoder is not None:
        sizes = clap.text_encoder.model_config
        config = config | {"text_encoder": {**config["text_encoder"], "pretrained": False, "model": sizes}}
    if "pretrained" in config["audio_encoder"]:
        config = config | {"audio_encoder": {**config["audio_encoder"], "pretrained": False}}
    return config


def write_tokenizer(clap: nn.Module, folder: Path) -> None:
    """Write the tokenizer's files, or log that they are not available."""
    if clap.tokenizer.is_available:
        with name_file(folder / checkpoint.TOKENIZER):
            clap.tokenizer.save(folder / checkpoint.TOKENIZER)
        return
    log.warning(
        "saved without a tokenizer: the model embeds audio only until %r can be read from the Hugging Face hub, or a "
        "folder with its files is given: Clap.from_ckpt(..., settings={'text_encoder.tokenizer': FOLDER})",
        clap.tokenizer.name,
    )


def export_huggingface(clap: nn.Module, folder: Path) -> None:
    """Write a new Hugging Face ClapModel folder, or log which parts of the model ClapModel does not have."""
    from clap.published.export import list_obstacles, write_huggingface  # transformers' audio models import slowly

    if obstacles := list_obstacles(clap):
        log.info("no Hugging Face folder is written; ClapModel has no counterpart of: %s", "; ".join(obstacles))
        return
    if missing := write_huggingface(clap, folder):
        log.warning("transformers' ClapFeatureExtractor does not support: %s", "; ".join(missing))
    if clap.tokenizer.is_available:
        clap.tokenizer.save(folder)

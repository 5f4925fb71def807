"""Low-rank adapters of the linear layers of encoders (LoRA, Hu et al. 2022), by peft.

In training an adapted layer is W x + alpha / r * B A x with a fixed W. Checkpoints for inference hold the sum of both
matrices under the names of a model without adapters. Only checkpoints/last holds W, A and B.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from clap.config.lora_settings import read_lora

KEY = "lora"  # of the config
Model = TypeVar("Model", bound=nn.Module)
ADAPTER = "default"  # peft's name of the only adapter of a layer


def add_adapters(encoders: Mapping[str, nn.Module], lora: Mapping[str, Any] | None) -> None:
    """Freeze the weights of encoders and add trainable adapters to their linear layers, in place.

    Args:
        encoders: by their names in the config.
        lora: options by encoder, see `read_lora`.

    Raises:
        ValueError: no linear layer has one of the names.
    """
    for part, options in read_lora(lora).items():
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and few runs have adapters

        layers = find_linear(encoders[part], options["target_modules"])
        if not layers:
            known = sorted({name.rpartition(".")[2] for name in find_linear(encoders[part], None)})
            raise ValueError(
                f"lora.{part}.target_modules={options['target_modules']}: no linear layer has such a name; their names "
                f"end in {', '.join(known)}"
            )
        sizes = {"r": options["r"], "lora_alpha": options["alpha"], "lora_dropout": options["dropout"]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it for GPT-2's layers
            inject_adapter_in_model(LoraConfig(**sizes, target_modules=layers), encoders[part], ADAPTER)


def find_linear(encoder: nn.Module, names: list[str] | None) -> list[str]:
    """Full names of the linear layers whose names end in one of `names`, or of all; other modules call each."""
    linear = [
        name
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    ]
    return [name for name in linear if names is None or any(f".{name}".endswith(f".{end}") for end in names)]


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> layer of the layers with an adapter."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def has_adapters(weights: Iterable[str]) -> bool:
    """Whether names of weights are of a model with adapters."""
    return any(".lora_A." in name for name in weights)


def merge_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model with its adapters merged, under the names of a model without adapters.

    Args:
        weights: the state dict of the model, whole if the model has a part only.
    """
    weights = dict(weights)
    for name, layer in adapted_layers(model).items():
        own = {key.removeprefix(f"{name}."): weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
        change = own[f"lora_B.{ADAPTER}.weight"] @ own[f"lora_A.{ADAPTER}.weight"] * layer.scaling[ADAPTER]
        own["base_layer.weight"] = own["base_layer.weight"] + (change.T if layer.fan_in_fan_out else change)
        weights |= {
            f"{name}.{key.removeprefix('base_layer.')}": value
            for key, value in own.items()
            if key.startswith("base_layer.")
        }
    return weights


def with_adapters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of a model without adapters, or with merged ones, for a model whose adapters then add zero."""
    weights = dict(weights)
    for name, layer in adapted_layers(model).items():
        for key in [key for key in weights if key.startswith(f"{name}.")]:
            weights[f"{name}.base_layer.{key.removeprefix(f'{name}.')}"] = weights.pop(key)
        own = {key: value for key, value in layer.state_dict().items() if key.startswith("lora_")}
        weights |= {
            f"{name}.{key}": torch.zeros_like(value) if key.startswith("lora_B") else value
            for key, value in own.items()
        }
    return weights


def merge_adapters(clap: Model) -> Model:
    """Replace the layers with an adapter by plain layers with the merged weights, in place; all parameters train."""
    layers = adapted_layers(clap)
    for name, layer in layers.items():
        layer.merge()
        clap.set_submodule(name, layer.get_base_layer())
    if layers:
        clap.config.pop(KEY)
        clap.requires_grad_(True)
    return clap

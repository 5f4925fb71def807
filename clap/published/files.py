"""Read tensors and configs from files of other projects, without executing code from them."""

import collections
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clap.checkpoint import READ_ERRORS
from clap.config.saved import check_plain, read_bounded
from clap.published.sources import PICKLED, SAFETENSORS

WRAPPERS = ("state_dict", "model")  # keys under which files store their weights
DDP_PREFIX = "module."


class Placeholder:
    """Replaces a pickled object of another project; discards its state."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Checkpoints of LAION-CLAP, PANNs and HTS-AT also contain numbers and arrays of numpy 1 and 2.
MULTIARRAY = (np.core if np.lib.NumpyVersion(np.__version__) < "2.0.0" else np._core).multiarray
NUMPY = [
    *(
        (getattr(MULTIARRAY, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ),
    *(np.ndarray, np.dtype),
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdUO"},
]
# Classes pickled by Custom-CLAP: its loss and its metrics.
CUSTOM_CLAP = [
    (Placeholder, f"clap.{name}")
    for name in (
        *(f"{module}.symmetric_cross_entropy.SymmetricCrossEntropyLoss" for module in ("model", "training")),
        *(
            f"{module}.{kind.lower()}_metrics.{span}{kind}Metrics"
            for module in ("metrics", "training")
            for kind in ("Retrieval", "Classification")
            for span in ("Batch", "Epoch")
        ),
        "training.metrics.BatchMetrics",
        "training.metrics.EpochMetrics",
    )
]
PLAIN = [collections.defaultdict, dict, *NUMPY, *CUSTOM_CLAP]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict of a file or Hugging Face folder, as float32 on the CPU.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: the file is damaged, contains more than tensors and plain data, or no tensors. No code was executed.
    """
    if path.is_dir():
        present = [path / name for name in (SAFETENSORS, PICKLED) if (path / name).is_file()]
        if not present:
            found = ", ".join(sorted(item.name for item in path.iterdir())) or "nothing"
            raise FileNotFoundError(f"{path}: contains neither {SAFETENSORS} nor {PICKLED}; found: {found}")
        path = present[0]
    read = read_safetensors if path.suffix == ".safetensors" else read_pickle
    weights = dict(unwrap(read(path), path))
    if any(needs_float32(value) for value in weights.values()):
        # Read unmapped, so that each tensor is freed once it is converted.
        weights = dict(unwrap(read(path, mapped=False), path))
    for key in weights:
        if needs_float32(weights[key]):
            weights[key] = weights[key].float()
    return weights


def needs_float32(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float32


def read_safetensors(path: Path, *, mapped: bool = True) -> dict[str, Tensor]:
    """Tensors in the memory-mapped file, or copies of them."""
    try:
        if mapped:
            return safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
        return {name: read_tensor(path, name) for name in names}
    except (safetensors.SafetensorError, *READ_ERRORS) as error:
        raise ValueError(f"{path}: damaged or truncated ({first_line(error)}); download it again") from None


def read_tensor(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, "pt") as file:
        return file.get_tensor(name).clone()


def read_pickle(path: Path, *, mapped: bool = True) -> Any:
    """Plain data and tensors written by torch.save; objects of Custom-CLAP become placeholders."""
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        name = str(error).partition("GLOBAL ")[2].split(" ")[0]
        what = f"it imports {name}" if name else "damaged, or not limited to plain data and tensors"
        raise ValueError(f"{path}: refused, {what}; no code was executed") from None
    except READ_ERRORS as error:
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint ({first_line(error)})") from None


def unwrap(values: Any, path: Path) -> list[tuple[str, Tensor]]:
    """The (key, tensor) pairs under `state_dict` or `model`, without the prefix of DistributedDataParallel."""
    for wrapper in WRAPPERS:
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    tensors = values if isinstance(values, Mapping) else {}
    tensors = {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
    for key, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            raise ValueError(
                f"{path}: {key} is {value.layout}, {value.dtype} on {value.device}; weights must be dense and real"
            )
    if not tensors:
        found = f"a mapping of {', '.join(map(str, list(values)[:5]))}" if isinstance(values, Mapping) else type(values)
        raise ValueError(
            f"{path}: no weights but {found}; allowed: tensors at the top level, in `state_dict` or in `model`"
        )
    cut = len(DDP_PREFIX) if all(key.startswith(DDP_PREFIX) for key in tensors) else 0
    return [(key[cut:], value) for key, value in tensors.items()]


def read_json_file(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file; empty if there is no such file.

    Raises:
        ValueError: the file is not a JSON mapping, too large, or has `${...}`, which would be read as interpolation.
    """
    try:
        values = json.loads(read_bounded(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: contains a {type(values).__name__}; it must be a mapping of names to values")
    check_plain(values, str(path))
    return values


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]

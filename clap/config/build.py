"""Builds the objects that a config describes.

A config may be part of an untrusted checkpoint, so `build` creates objects only of classes that are defined in a file
of this package. Imports neither torch nor Hydra.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from clap.config import read_config
from clap.config.values import suggest

# Names of moved classes in older checkpoints and job.json files: old name -> present name.
MOVED = {
    "clap.evaluation.Retrieval": "clap.evaluation.retrieval.Retrieval",
    "clap.evaluation.ZeroShot": "clap.evaluation.zero_shot.ZeroShot",
}
LOG_MEL = "clap.audio.LogMelSpectrogram"
# Removed arguments: {argument: {value as text: the class with this behaviour}}.
LOG_MEL_ARGUMENTS = {
    "float32_hann": {"False": LOG_MEL, "True": "clap.published.frontends.TorchaudioLogMel"},
    "float64": {"False": LOG_MEL, "True": "clap.published.frontends.TransformersLogMel"},
    "bank_rate": {"None": LOG_MEL, "32000": "clap.published.frontends.MSClap2023LogMel"},
}


def build(node: Mapping, expected: type, **runtime: Any) -> Any:
    """Build the object that a config node describes.

    `_target_` names a class of this package by its full path, the other keys are its arguments: plain data, or further
    nodes, which must be modules and are built first. `_partial_: true` gives functools.partial of the class.

    Args:
        expected: the class of which `_target_` must be a subclass.
        runtime: arguments that are objects, such as a tokenizer, and cannot be in a yaml.

    Raises:
        ValueError: the target or an argument is not allowed, unknown or missing; no code outside this package was run.
    """
    node = read_config(node) if OmegaConf.is_config(node) else node
    cls = find_target(node, expected)
    node = update_node(node)
    target, partial = node["_target_"], node.get("_partial_", False)
    given = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    if clash := sorted(given.keys() & runtime.keys()):
        raise ValueError(
            f"_target_ {target}: {', '.join(clash)} is set when the program runs; remove it from the config"
        )
    _check_names(cls, [*given, *runtime], partial=partial)
    arguments = {key: _build_argument(value, f"_target_ {target}: {key}") for key, value in given.items()} | runtime
    return functools.partial(cls, **arguments) if partial else cls(**arguments)


def build_module(node: Mapping, **runtime: Any) -> Any:
    """As `build`, of a torch module."""
    from torch import nn  # corpora and evaluators are built without importing torch

    return build(node, nn.Module, **runtime)


def find_target(node: Any, expected: type) -> type:
    """The class that a config node names, with the checks of `build`.

    Raises:
        ValueError: `_target_` is missing or not allowed.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        given = f"the keys {', '.join(map(str, node))}" if isinstance(node, Mapping) else f"a {type(node).__name__}"
        raise ValueError(f"{given}: `_target_` is missing; it must name a subclass of {expected.__name__}")
    return _find_class(update_node(node)["_target_"], expected)


def update_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with the present name of its class, and without log-mel arguments that are now classes of their own."""
    node = dict(node)
    node["_target_"] = update_target(node["_target_"])
    if node["_target_"] == LOG_MEL:
        for key, classes in LOG_MEL_ARGUMENTS.items():
            if key in node and str(node[key]) in classes:  # MLflow stores text
                moved = classes[str(node.pop(key))]
                node["_target_"] = node["_target_"] if moved == LOG_MEL else moved
    return node


def update_target(target: Any) -> Any:
    """The present name of a class that has moved; any other value is returned unchanged."""
    return MOVED.get(target, target) if isinstance(target, str) else target


def _build_argument(value: Any, where: str) -> Any:
    """Copy plain data and build the nodes in it; errors start with `where`."""
    if isinstance(value, Mapping) and "_target_" in value:
        return build_module(value)
    if isinstance(value, Mapping):
        return {key: _build_argument(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_build_argument(item, where) for item in value]
    if isinstance(value, str) and value == "???":
        raise ValueError(f"{where} is ???; give a value")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{where} is a {type(value).__name__}; allowed: null, bool, int, float, str, lists and mappings of these"
    )


def _find_class(target: Any, expected: type) -> type:
    """The class that a target names, if it is defined in this package under exactly that name.

    Looks names up in the module's dictionary instead of by getattr, which may import other packages lazily.
    """
    refusal = ValueError(
        f"_target_ {target!r} is refused; allowed: the full name of a subclass of {expected.__name__} "
        "that is defined in a file of clap/, such as clap.module.Class"
    )
    parts = target.split(".") if isinstance(target, str) else []
    if parts[:1] != ["clap"] or not all(part.isidentifier() for part in parts):
        raise refusal
    module, names = _find_module(parts)
    found: Any = module
    for name in names:
        found = vars(found).get(name) if found is module or isinstance(found, type) else None
    if not isinstance(found, type) or not issubclass(found, expected):
        raise refusal
    if f"{found.__module__}.{found.__qualname__}" != target:
        raise refusal
    return found


def _find_module(parts: list[str]) -> tuple[ModuleType, list[str]]:
    """Import the module with the longest prefix of a dotted name; return it and the remaining names."""
    module, names = importlib.import_module("clap"), parts[1:]
    while names and "__path__" in vars(module):
        full_name = f"{module.__name__}.{names[0]}"
        if not _is_in_package(find_spec(full_name)):
            break
        module = importlib.import_module(full_name)
        names = names[1:]
    return module, names


def _is_in_package(spec: ModuleSpec | None) -> bool:
    """Whether a module's file is inside the folder of this package, after resolving links."""
    if spec is None or not spec.has_location:
        return False
    folders = [Path(folder).resolve() for folder in importlib.import_module("clap").__path__]
    return any(Path(spec.origin).resolve().is_relative_to(folder) for folder in folders)


def _check_names(cls: type, names: list[str], *, partial: bool) -> None:
    """Reject unknown arguments, and missing required ones unless it is a partial."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in kinds}
    target = f"{cls.__module__}.{cls.__qualname__}"
    for name in names:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"{target} has no argument {name!r}{suggest(str(name), known)}; allowed: {allowed}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in names]
    if missing and not partial:
        raise ValueError(f"{target} needs {', '.join(missing)}; given: {', '.join(map(str, names)) or 'nothing'}")

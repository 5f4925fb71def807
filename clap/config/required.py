"""Required values, `???` in a yaml, also over a value of a yaml that it extends; and open mappings.

OmegaConf ignores `???` in a merge, so that an option could not require a key that another yaml sets. Importing this
module makes Hydra's loader keep it: the key is required until a later yaml or an override sets it.
Overrides may add items to an open mapping.
"""

import functools
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ResultDefault
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf, flag_override

from clap.config.values import OPEN_MAPPINGS

MISSING = "???"
STRUCTURED = "structured://"  # path of Hydra's own defaults, which are types with values that Hydra sets later
merge_yamls = ConfigLoaderImpl._compose_config_from_defaults_list


def merge_and_require(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> DictConfig:
    """Merge yamls as Hydra does, set the keys to `???` that a yaml requires and no later one sets, open mappings.

    The loader's attribute `required` names the yaml of each, {dotted key: (option, file)}.
    """
    required: dict[tuple[str, ...], tuple[str, Path]] = {}
    for default in defaults:
        loaded = loader._load_single_config(default=default, repo=repo)
        file = Path(str(loaded.path).removeprefix("file://")) / ConfigSource._normalize_file_name(default.config_path)
        for path, value in list_leaves(OmegaConf.to_container(loaded.config)):
            for known in [known for known in required if all(map(operator.eq, known, path))]:  # it, above or below it
                del required[known]
            if value == MISSING and loaded.path != STRUCTURED:
                required[path] = (default.config_path, file)
    config = merge_yamls(loader, defaults, repo)
    with flag_override(config, ["readonly", "struct"], False):
        for *parents, name in required:
            functools.reduce(operator.getitem, parents, config)[name] = MISSING
    for node in filter(OmegaConf.is_dict, (OmegaConf.select(config, key) for key in OPEN_MAPPINGS)):
        OmegaConf.set_struct(node, False)
    loader.required = {".".join(path): origin for path, origin in required.items()}
    return config


def list_leaves(node: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values of nested mappings; lists, and empty mappings, are values."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from list_leaves(value, (*parents, name))
        else:
            yield (*parents, name), value


ConfigLoaderImpl._compose_config_from_defaults_list = merge_and_require

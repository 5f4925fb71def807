"""Corpora by name or from a config."""

import functools
import importlib
import inspect
import logging
import math
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clap.config.build import build
from clap.corpus import Corpus, find_folder, plain_name
from clap.dataset.dataset_settings import SETTINGS_KEYS
from clap.download.addresses import read_addresses

log = logging.getLogger(__name__)


def open_corpus(config: Mapping) -> Corpus:
    """The corpus that a `dataset` config node describes; the other keys in it are `DatasetSettings`."""
    return build({key: value for key, value in config.items() if key not in SETTINGS_KEYS}, Corpus)


def find_corpus(name: str, root: str | Path | None, options: Mapping | None = None) -> Corpus:
    """A corpus by name, with its options at their defaults but for those given.

    Args:
        root: its folder, or one that holds its folder under its name.
    """
    make = find_class(plain_name(name))
    if make is None:
        raise ValueError(f"dataset {name!r} is not one of {', '.join(list_corpora())}")
    arguments = dict(options or {})
    if root is not None:
        arguments["root"] = find_folder(root, name) or root
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"dataset {name!r}: {error}; give root=..., or the corpus itself, as datasets=[{make.__name__}(...)]"
        ) from None
    return make(**arguments)


def find_class(name: str) -> type[Corpus] | None:
    """The corpus of clap/dataset/NAME.py: the class whose `name` is that of its module."""
    if name not in {module.name for module in pkgutil.iter_modules([Path(__file__).parent])}:
        return None
    module = importlib.import_module(f"{__package__}.{name}")
    classes = (item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Corpus))
    return next(
        (item for item in classes if item.__module__ == module.__name__ and vars(item).get("name") == name), None
    )


def list_corpora() -> list[str]:
    """Names of all corpora of clap/dataset/, as their classes spell them."""
    modules = (module.name for module in pkgutil.iter_modules([Path(__file__).parent]))
    return [found.__name__ for name in modules if (found := find_class(name)) is not None]


def check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight for each corpus, 1 where none are given."""
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights={weights}: give a positive number for each of {count} corpora; set dataset.weights")
    return weights


def download_named(names: Sequence[Any], root: str | Path | None, split: str) -> None:
    """Fetch what is missing of a split of corpora, as `ClapDataset(download=True)` does; the log says what is there.

    Raises:
        ValueError: something other than a name, one that cannot be downloaded, or no root.
    """
    from clap.download.run import download_corpus  # yt-dlp and 7z, a second

    if root is None or not all(isinstance(name, str) for name in names):
        raise ValueError('download=True needs names of corpora and a folder for them: datasets=["Clotho"], root="data"')
    for name in map(plain_name, names):
        result = download_corpus(name, root, read_addresses(name), functools.partial(find_corpus, name), splits=[split])
        log.log(logging.WARNING if result.missing or result.failures else logging.INFO, "%s", result)

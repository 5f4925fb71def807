"""Create corpora by name or from a config."""

import functools
import importlib
import inspect
import logging
import math
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clap.config import find_conf_dir
from clap.config.build import build
from clap.config.values import check_name
from clap.corpus import SPLITS, Corpus, Part, find_folder, plain_name
from clap.dataset.dataset_settings import SETTINGS_KEYS
from clap.download.addresses import read_addresses

log = logging.getLogger(__name__)


def open_corpus(config: Mapping) -> Corpus:
    """Build the corpus of a `dataset` config node, whose other keys are `DatasetSettings`."""
    corpus = build({key: value for key, value in config.items() if key not in SETTINGS_KEYS}, Corpus)
    check_names(corpus.parts)
    return corpus


def check_names(parts: Sequence[Part]) -> None:
    """ValueError if the name of a corpus cannot be part of a metric or of a file name."""
    for part in parts:
        check_name(getattr(part.corpus, "name", None), f"name of {type(part.corpus).__name__}")


def find_corpus(name: str, root: str | Path | None, options: Mapping | None = None) -> Corpus:
    """Build a corpus by name.

    Args:
        root: the folder of the corpus, or a folder that contains one with its name.
        options: keyword arguments of the corpus; others keep their defaults.

    Raises:
        ValueError: the name or an option is unknown, or a required option is missing.
    """
    corpus_class = find_class(plain_name(name))
    if corpus_class is None:
        raise ValueError(f"dataset {name!r} is not one of {', '.join(list_corpora())}")
    arguments = dict(options or {})
    if root is not None:
        arguments["root"] = find_folder(root, name) or root
    try:
        inspect.signature(corpus_class).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"dataset {name!r}: {error}; give root=..., or the corpus itself, "
            f"as datasets=[{corpus_class.__name__}(...)]"
        ) from None
    return corpus_class(**arguments)


def find_class(name: str) -> type[Corpus] | None:
    """The Corpus class in clap/dataset/NAME.py whose `name` equals the module's, or None; underscores are optional."""
    names = {module.replace("_", ""): module for module in list_modules()}
    if (name := names.get(name.replace("_", ""))) is None:
        return None
    module = importlib.import_module(f"{__package__}.{name}")
    classes = (item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Corpus))
    return next(
        (item for item in classes if item.__module__ == module.__name__ and vars(item).get("name") == name), None
    )


def find_splits(corpus: Corpus) -> dict[str, list[str]]:
    """Split -> names of the corpora with clips in it, without empty evaluation splits."""
    counts = {split: {part.corpus.name: len(part.clips(split)) for part in corpus.parts} for split in SPLITS}
    found = {split: [name for name, number in count.items() if number] for split, count in counts.items()}
    return {split: names for split, names in found.items() if names or split == "train"}


def list_corpora() -> list[str]:
    """Class names of all corpora in clap/dataset/."""
    return [found.__name__ for name in list_modules() if (found := find_class(name)) is not None]


def list_kinds() -> list[str]:
    """The options of the group `dataset` that are single corpora; no module of another kind is imported."""
    options = sorted(path.stem for path in (find_conf_dir() / "dataset").glob("[!_]*.yaml"))
    return [name for name in options if find_class(name) is not None]


def list_modules() -> list[str]:
    """Names of the modules in clap/dataset/."""
    return [module.name for module in pkgutil.iter_modules([Path(__file__).parent])]


def check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight for each of `count` corpora, 1 by default; ValueError unless all are positive and finite."""
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights={weights}: give a positive number for each of {count} corpora; set dataset.weights")
    return weights


def download_named(names: Sequence[Any], root: str | Path | None, split: str) -> None:
    """Download the missing files of a split of each corpus into `root` and log the result.

    Raises:
        ValueError: root is missing, an item is not a name, or the corpus cannot be downloaded.
    """
    from clap.download.run import download_corpus  # imports yt-dlp and 7z, which takes a second

    if root is None or not all(isinstance(name, str) for name in names):
        raise ValueError(
            'download=True needs names of corpora and a folder for them, such as datasets=["Clotho"], root="data"'
        )
    for name in map(plain_name, names):
        result = download_corpus(name, root, read_addresses(name), functools.partial(find_corpus, name), splits=[split])
        log.log(logging.WARNING if result.missing or result.failures else logging.INFO, "%s", result)

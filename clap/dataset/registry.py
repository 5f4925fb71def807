"""Corpora by name or from a config."""

import functools
import importlib
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clap.config.build import build
from clap.corpus import Corpus, find_folder, plain_name
from clap.download.addresses import read_addresses
from clap.download.run import download_corpus

log = logging.getLogger(__name__)

CORPORA = {  # module of clap.dataset -> class
    "synthetic": "Synthetic",
    "clotho": "Clotho",
    "audiocaps": "AudioCaps",
    "wavcaps": "WavCaps",
    "fsd50k": "FSD50K",
    "urbansound8k": "UrbanSound8K",
    "esc50": "ESC50",
    "csv": "CSV",
    "huggingface": "HuggingFace",
}
LOADER_KEYS = ("batch_size", "num_workers", "max_bad_fraction", "max_clips", "cache", "exclude", "captions")


def open_corpus(config: Mapping) -> Corpus:
    """The corpus that a `dataset` config node describes; the loader's keys in it are not the corpus's."""
    corpus = build({key: value for key, value in config.items() if key not in LOADER_KEYS}, Corpus)
    if config.get("cache") is not None:
        from clap.dataset.cache import WaveformCache  # torch

        for part, _ in corpus.parts:
            part.cache = WaveformCache(config["cache"])
    return corpus


def find_corpus(name: str, root: str | Path | None, options: Mapping | None = None) -> Corpus:
    """A corpus by name, with its options at their defaults but for those given.

    Args:
        root: its folder, or one that holds its folder under its name.
    """
    module = plain_name(name)
    if module not in CORPORA:
        raise ValueError(f"dataset {name!r} is not one of {', '.join(CORPORA.values())}")
    make = getattr(importlib.import_module(f"clap.dataset.{module}"), CORPORA[module])
    arguments = dict(options or {})
    if root is not None:
        arguments["root"] = find_folder(root, name) or root
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"dataset {name!r}: {error}; give root=..., or the corpus itself, as datasets=[{CORPORA[module]}(...)]"
        ) from None
    return make(**arguments)


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
    if root is None or not all(isinstance(name, str) for name in names):
        raise ValueError('download=True needs names of corpora and a folder for them: datasets=["Clotho"], root="data"')
    for name in map(plain_name, names):
        result = download_corpus(name, root, read_addresses(name), functools.partial(find_corpus, name), splits=[split])
        log.log(logging.WARNING if result.missing or result.failures else logging.INFO, "%s", result)

"""A mixture of corpora for training, each with options of its own; each is evaluated separately."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clap.config.values import CAPTION_POLICIES, SPLITS, check_name, suggest
from clap.corpus import Corpus, Part, find_folder, plain_name
from clap.dataset.clip_table import JoinedClips
from clap.dataset.registry import find_class, list_kinds

USE = ("weight", "captions", "exclude", "splits")  # how a corpus is used; the other options are its own


class Parts(Corpus):
    """The clips of several corpora, or of one under another name or with other splits.

    Args:
        parts: the corpora, each with a name of its own.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.mixed = list(parts)
        self.name = "_".join(part.corpus.name for part in self.mixed)
        self.max_duration = max(part.corpus.max_duration for part in self.mixed)

    @property
    def parts(self) -> list[Part]:
        return self.mixed

    def clips(self, split: str) -> JoinedClips:
        return JoinedClips(own for part in self.mixed for own in part.list_clips(split))


def without_exclusions(corpus: Corpus) -> Parts:
    """A corpus with those training clips too that files of its parts exclude."""
    return Parts([replace(part, exclude=()) for part in corpus.parts])


class Mixture(Parts):
    """The clips of several corpora; in training, each is drawn by its weight.

    Args:
        root: contains a folder for each corpus without a root of its own, named after it: clotho/ or Clotho/.
        corpora: {name in metrics: options}, such as {audiocaps: {version: v2}, mine: {corpus: csv, root: ...}}. The
            options are those of the corpus, and
            corpus: the kind, as `dataset=csv` names it; by default the name;
            weight, captions, exclude, splits: see `Part`; `exclude` is a file or a list of files, and `splits: [train]`
            is short for `splits: {train: [train]}`.
        weights: {name: weight}, for those without the option.

    Raises:
        FileNotFoundError: the folder of a corpus is missing.
        ValueError: a name, option or weight is invalid.
    """

    def __init__(
        self, root: str | Path = ".", *, corpora: Mapping[str, Mapping], weights: Mapping[str, float] | None = None
    ) -> None:
        plans = plan_mixture(corpora, weights)
        folders = [plan.find_root(root) for plan in plans]
        super().__init__([plan.open(folder) for plan, folder in zip(plans, folders, strict=True)])
        names = [part.corpus.name for part in self.mixed]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"dataset.corpora: {twice!r} is the name of two corpora in metrics; rename one of them")


@dataclass(frozen=True)
class PlannedPart:
    """A corpus of a mixture after the check of its options, before a file of it is read."""

    name: str
    key: str
    corpus_class: type[Corpus]
    options: Mapping[str, Any]
    use: Mapping[str, Any]

    def find_root(self, root: str | Path) -> str | Path | None:
        """The folder of the corpus: its own root, or its folder in that of the mixture; None if it needs none."""
        parameter = inspect.signature(self.corpus_class).parameters.get("root")
        if parameter is None or "root" in self.options:
            return self.options.get("root")
        if parameter.default is not parameter.empty and self.options.keys() & {*SPLITS}:  # tars of each split
            return None
        folder = find_folder(root, self.name)
        if folder is None and parameter.default is parameter.empty:
            raise FileNotFoundError(
                f"{Path(root) / self.name} is missing; root={root} must contain one folder for each corpus without a "
                f"root of its own; set dataset.root or {self.key}.root"
            )
        return folder

    def open(self, root: str | Path | None) -> Part:
        """The corpus, under the name that it has in metrics."""
        options = dict(self.options) | ({} if root is None else {"root": root})
        try:
            corpus = self.corpus_class(**options)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.key}: {self.name_keys(str(error))}") from error
        except ValueError as error:  # its own class may need other arguments
            raise ValueError(f"{self.key}: {self.name_keys(str(error))}") from error
        if self.corpus_class.name != plain_name(self.name):
            corpus.name = self.name
        return Part(corpus, **self.use)

    def name_keys(self, message: str) -> str:
        """An error with the keys of this corpus where it has those of `dataset`."""
        options = inspect.signature(self.corpus_class).parameters
        return re.sub(rf"\bdataset\.(?=(?:{'|'.join(options)})\b)", f"{self.key}.", message)


def plan_mixture(corpora: Mapping[str, Mapping], weights: Mapping[str, float] | None) -> list[PlannedPart]:
    """Check the options of a mixture without reading its files; ValueError as of `Mixture`."""
    weights = dict(weights or {})
    if not corpora:
        raise ValueError("corpora={} is empty; name one or more in dataset.corpora")
    if unknown := sorted(weights.keys() - corpora.keys()):
        raise ValueError(f"weights: {unknown[0]} is not one of {', '.join(corpora)}; set dataset.weights")
    return [
        plan_part(name, options, key=f"dataset.corpora.{name}", weight=weights.get(name, 1.0))
        for name, options in corpora.items()
    ]


def plan_part(
    name: str, options: Mapping[str, Any] | None, *, key: str, weight: float = 1.0, is_mixed: bool = True
) -> PlannedPart:
    """Check the name and the options of a corpus without reading its files.

    Args:
        key: of the options in the config, for errors.
        weight: if it is not among the options.
        is_mixed: whether the corpus is in a mixture, which may give it a root, or is evaluated only.

    Raises:
        ValueError: the kind or an option is unknown, missing or invalid.
    """
    check_name(name, key)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ValueError(f"{key}={options!r} is not a mapping; write {{root: FOLDER}}, or {{}}")
    kind = options.get("corpus", name)
    corpus_class = find_class(plain_name(str(kind)))
    if corpus_class is None:
        kinds = list_kinds()
        hint = "" if "corpus" in options else f", or give its kind, {key}.corpus=csv"
        raise ValueError(f"{key}: {kind!r} is not one of {', '.join(kinds)}{suggest(str(kind), kinds)}{hint}")
    known = {item.name: item for item in inspect.signature(corpus_class).parameters.values() if item.name != "name"}
    others = ("corpus", *USE) if is_mixed else ("corpus", "splits", "evaluation")
    own = {option: value for option, value in options.items() if option not in others}
    if unknown := next((option for option in own if option not in known), None):
        allowed = [*known, *others]
        raise ValueError(
            f"{key} has no option {unknown}{suggest(str(unknown), allowed)}; options: {', '.join(allowed)}"
        )
    required = [
        option for option, item in known.items() if item.default is item.empty and (option, is_mixed) != ("root", True)
    ]
    if missing := [option for option in required if own.get(option, "???") == "???"]:
        raise ValueError(f"{key} needs {', '.join(missing)}; set {key}.{missing[0]}")
    if own.get("root") is not None and not isinstance(own["root"], str | Path):
        raise ValueError(f"{key}.root={own['root']!r} is not a path; quote it")
    if "name" in inspect.signature(corpus_class).parameters:
        own["name"] = name
    return PlannedPart(name, key, corpus_class, own, read_use({"weight": weight} | dict(options), key))


def read_use(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arguments of `Part` in the options of a corpus."""
    use = {option: options[option] for option in USE if options.get(option) is not None}
    if not isinstance(use.get("weight"), int | float) or not 0 < use["weight"] < math.inf:
        raise ValueError(f"{key}.weight={options['weight']!r} is not a positive number")
    if use.get("captions") not in (None, *CAPTION_POLICIES):
        allowed = ", ".join(CAPTION_POLICIES)
        raise ValueError(f"{key}.captions={use['captions']!r} is not one of {allowed}")
    if "exclude" in use:
        use["exclude"] = tuple(list_items(use["exclude"], f"{key}.exclude"))
    if "splits" in use:
        use["splits"] = read_splits(use["splits"], f"{key}.splits")
    return use


def read_splits(splits: Any, key: str) -> dict[str, list[str]]:
    """Split -> splits of the corpus, from a mapping, or a list of those that keep their role."""
    if not isinstance(splits, Mapping):
        splits = {split: split for split in list_items(splits, key)}
    found = {split: list_items(own, f"{key}.{split}") for split, own in splits.items()}
    used = [own for names in found.values() for own in names]
    if unknown := [split for split in (*found, *used) if split not in SPLITS]:
        allowed = ", ".join(SPLITS)
        raise ValueError(f"{key}: {unknown[0]!r} is not one of {allowed}; write [train], or {{train: [train, val]}}")
    if twice := [own for own in used if used.count(own) > 1]:
        raise ValueError(f"{key}: {twice[0]} is used twice, and its clips would be in two splits; name it once")
    return found


def list_items(value: Any, key: str) -> Sequence[str]:
    """A string, or a list of strings, as a list."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{key}={value!r} is neither a string nor a list of strings")
    return list(items)

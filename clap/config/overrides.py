"""Checks of the overrides at start-up, before the slow imports.

Hydra accepts three kinds of errors: a key that is not in any yaml (`+lr=3`), a value of another type
(`optimizer.lr=fast`), and a missing required value. Here the yaml is the schema, and each error is one line.
"""

import contextlib
import copy
import hashlib
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from clap.config import flatten
from clap.config.required import MISSING
from clap.config.search_space import check_sweep, read_interval
from clap.config.secrets import check_no_secrets
from clap.config.values import OPEN_MAPPINGS, check_value, check_yaml_values, shell_override, suggest, suggest_key


def resolve_value(config: DictConfig, key: str) -> Any:
    """The value of a key as plain data; "???" if it is missing or its interpolation resolves only in a running job."""
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return MISSING


VERSION_BASE = "1.3"
LONGEST_FOLDER = 255  # bytes of a name


def name_folder(overrides: str) -> str:
    """Folder name of a job from what is swept: `optimizer.lr=0.001,seed=1`.

    A hash follows if characters are replaced, or if the name is cut to the limit of file systems.
    """
    name = re.sub(r"[^\w.,=+-]+", "_", overrides)
    if name == overrides and len(name.encode()) <= LONGEST_FOLDER:
        return name or "default"
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_FOLDER - len(digest) - 1].decode(errors='ignore')}-{digest}"


OmegaConf.register_new_resolver("folder_name", name_folder, replace=True)  # in conf/*.yaml, of override_dirname


def check_overrides(argv: list[str], *, config_dir: Path, config_name: str) -> list[dict[str, Any]]:
    """Compose the config of a command line and reject its first error.

    In a sweep, every value is checked and every option is composed at least once, but not every combination. Returns
    the configs in which they were checked, without those that only a running job resolves.

    Raises:
        ValueError: an override names an unknown option or key, has a value of another type, adds or removes a key, or a
            required value is missing. Exceptions of Hydra are not caught.
    """
    args, unknown = get_args_parser().parse_known_args(argv)
    if unknown:
        what = "unknown flag" if unknown[0].startswith("-") else "write flags before or after all overrides"
        raise ValueError(f"{unknown[0]}: {what}; --hydra-help lists the flags")
    if args.hydra_help or args.shell_completion or args.experimental_rerun:
        return []
    composes_only = bool(args.cfg or args.help or args.info)
    configs = Configs.open(args, config_dir=config_dir, config_name=config_name)
    overrides = configs.parse(args.overrides)
    configs.check_hydra([override for override in overrides if _is_hydra(override)])
    hydra_lines = [override.input_line for override in overrides if _is_hydra(override)]
    overrides = [override for override in overrides if not _is_hydra(override)]
    groups, values = configs.split(overrides)
    fixed = [override.input_line for override in groups if not override.is_sweep_override()]
    main = configs.compose([*hydra_lines, *fixed])
    if args.multirun or main.mode == RunMode.MULTIRUN:
        given = {override.key_or_group for override in overrides}
        study = [f"{key}={value}" for key, value in main.sweep.items() if key not in given]
        if not composes_only:
            main.check_given([line.removesuffix(f"={MISSING}") for line in study if line.endswith(f"={MISSING}")])
        groups, values = configs.split(configs.parse(study) + overrides)
        first = configs.compose([*hydra_lines, *(_lines(override)[0] for override in groups)]).config
        check_sweep([*groups, *values], main.sweeper, lambda key: resolve_value(first, key))
    else:
        _check_single(overrides)
    checked = []
    for index in range(max(len(list_values(override)) for override in [*groups, *values]) if groups or values else 1):
        job = configs.compose([*hydra_lines, *(_choose(_lines(override), index) for override in groups)])
        config = _set_values(job, values, index)
        flat = dict(flatten(OmegaConf.to_container(config)))
        if not composes_only:
            check_no_secrets(flat)
            job.check_given([key for key, value in flat.items() if value == MISSING])
            check_yaml_values(flat)
            with contextlib.suppress(OmegaConfBaseException):  # ${hydra:...} of a running job
                checked.append(OmegaConf.to_container(config, resolve=True))
    return checked


@dataclass
class ComposedJob:
    """A composed config; of its `hydra` node only the mode, the sweeper and the option of each group.

    Attributes:
        required: dotted key -> the option and the file that require it.
    """

    config: DictConfig
    choices: dict[str, str]
    mode: RunMode | None
    sweeper: dict[str, Any]
    required: dict[str, tuple[str, Path]]

    @property
    def sweep(self) -> dict[str, Any]:
        """The overrides of the sweeper's parameters."""
        return self.sweeper.get("params") or {}

    def keys(self) -> dict[str, Any]:
        """Dotted key -> unresolved value, for mappings and for their items."""
        return dict(flatten(OmegaConf.to_container(self.config)))

    def describe_option(self, key: str) -> str:
        """The text " with optimizer=adam" for a key of a group, else an empty string."""
        group = key.split(".")[0]
        return f" with {group}={self.choices[group]}" if self.choices.get(group) else ""

    def check_given(self, missing: list[str]) -> None:
        """Reject required keys without a value."""
        if not missing:
            return
        key = missing[0]
        option, file = self.required.get(key) or self.required.get(f"hydra.sweeper.params.{key}") or ("", None)
        group = option.rpartition("/")[0]
        chosen = f" with {group}={self.choices[group]}" if self.choices.get(group) else ""
        raise ValueError(f"{' and '.join(missing)} must be set{chosen}; add {key}=VALUE{_find_comment(key, file)}")


@dataclass
class Configs:
    """The yaml files that a command line uses."""

    loader: ConfigLoaderImpl
    name: str
    composed: dict[tuple[str, ...], ComposedJob] = field(default_factory=dict)

    @classmethod
    def open(cls, args: Namespace, *, config_dir: Path, config_name: str) -> "Configs":
        """Search the same folders as Hydra, including --config-path and --config-dir."""
        version.setbase(VERSION_BASE)
        setup_globals()
        path = create_config_search_path(str(config_dir.parent / args.config_path if args.config_path else config_dir))
        if args.config_dir is not None:
            added = f"file://{Path(args.config_dir).resolve()}"
            path.prepend(provider="command-line", path=added, anchor=SearchPathQuery(provider="schema"))
        return cls(ConfigLoaderImpl(path), args.config_name or config_name)

    def compose_all(self, lines: list[str]) -> DictConfig:
        """Compose the config with its `hydra` node, as Hydra does before a run or the jobs of a sweep."""
        return self.loader.load_configuration(self.name, lines, RunMode.MULTIRUN)

    def parse(self, lines: list[str]) -> list[Override]:
        """Parse overrides with Hydra's grammar."""
        parser = OverridesParser.create(config_loader=self.loader)
        try:
            return parser.parse_overrides(lines)
        except OverrideParseException as error:
            key, sign, value = error.override.partition("=")
            if unknown := re.search(r"Unknown function '(\w+)'", str(error)):
                hint = suggest(unknown[1], parser.functions.functions)
                raise ValueError(f"{error.override}: there is no function {unknown[1]}{hint}") from error
            quoted = f"; quote a value with special characters: {shell_override(key, value)}" if sign else ""
            raise ValueError(f"{error.override}: not an override; write key=value{quoted}") from error

    def split(self, overrides: list[Override]) -> tuple[list[Override], list[Override]]:
        """Split into overrides that choose options of groups, which are checked, and overrides that set values."""
        chooses = [bool(self.options(o.key_or_group)) and not isinstance(o.value(), dict) for o in overrides]
        groups = [override for override, chosen in zip(overrides, chooses, strict=True) if chosen]
        for override in groups:
            self.check_group(override)
        return groups, [override for override, chosen in zip(overrides, chooses, strict=True) if not chosen]

    def options(self, group: str) -> list[str]:
        """The options of a group, empty for an unknown group; names with _ are parts of other yamls."""
        return [name for name in self.loader.get_group_options(group) if not name.startswith("_")]

    def check_group(self, override: Override) -> None:
        """Reject an unknown option, and an override that adds or removes a group."""
        line, group = override.input_line, override.key_or_group
        options = ", ".join(self.options(group))
        if override.is_delete():
            raise ValueError(f"{line}: groups cannot be removed; write {group}=OPTION with one of: {options}")
        if override.is_add() or override.is_force_add():
            raise ValueError(f"{line}: groups cannot be added; write {line.lstrip('+')}")
        choices = [
            option for value in list_values(override) for option in (value if isinstance(value, list) else [value])
        ]
        if not choices:
            raise ValueError(f"{line}: no option of {group} matches; options: {options}")
        for option in choices:
            prefix, _, name = str(option).rpartition("/")
            folder = f"{group}/{prefix}".rstrip("/")
            if name not in self.options(folder):
                typed = dict(zip(map(str, list_values(override)), _typed_values(override), strict=True)).get(name)
                is_number = typed != name and typed in self.options(folder)
                known = self.options(group) + [f"{prefix}/{row}" for row in self.options(folder) if prefix]
                hint = f"; write '{group}=\"{typed}\"'" if is_number else suggest(str(option), known)
                raise ValueError(f"{line}: {group} has no option {option}{hint}; options: {', '.join(known)}")
            if group == "experiment":
                self.check_experiment(line, option)

    def check_experiment(self, line: str, option: str) -> None:
        """Reject an experiment of the other entry point: those of evaluate.py, and its yaml, have `checkpoint`."""
        names = (self.name, f"experiment/{option}")
        own, other = ("checkpoint" in self.loader.repository.load_config(name).config.keys() for name in names)
        if own != other:
            script, rest = ("evaluate.py", "sets a checkpoint") if other else ("train.py", "sets no checkpoint")
            raise ValueError(f"{line}: the experiment {rest} and is run by python {script} {line}")

    def check_hydra(self, overrides: list[Override]) -> None:
        """Reject an unknown option of one of Hydra's own groups."""
        for override in overrides:
            if self.options(override.key_or_group) and not override.is_delete():
                self.check_group(override)

    def suggest_hydra_key(self, key: str, lines: list[str]) -> str:
        """Text that suggests keys of Hydra, with the options that the lines choose."""
        groups = [line for line in lines if self.options(line.partition("=")[0])]
        known = flatten(OmegaConf.to_container(self.compose_all(groups).hydra))
        return suggest_key(key, [f"hydra.{name}" for name, _ in known])

    def compose(self, lines: list[str]) -> ComposedJob:
        """Compose the yamls with the chosen options, before values are set; cached by the options."""
        if tuple(lines) in self.composed:
            return self.composed[tuple(lines)]
        try:
            config = self.loader.load_configuration(self.name, lines, RunMode.MULTIRUN)
        except ConfigCompositionException as error:
            if found := re.match(r"Could not override '(hydra\.[^']+)'", str(error)):
                raise ValueError(f"there is no key {found[1]}{self.suggest_hydra_key(found[1], lines)}") from error
            raise
        with open_dict(config):
            settings = config.pop("hydra")
        sweeper = OmegaConf.to_container(settings.sweeper)
        choices, required = dict(settings.runtime.choices), self.loader.required
        job = ComposedJob(config, choices, mode=settings.mode, sweeper=sweeper, required=required)
        return self.composed.setdefault(tuple(lines), job)


def list_overrides(argv: Sequence[str]) -> list[str]:
    """The overrides of a command line, without its flags."""
    return get_args_parser().parse_known_args(argv)[0].overrides


def _choose(items: list[Any], index: int) -> Any:
    """An item of a list that is repeated without end."""
    return items[index % len(items)]


def find_fixed_keys(configs: Configs, params: Mapping[str, Any], lines: list[str]) -> list[str]:
    """The keys that all jobs of a sweep have in common, of those in the sweeper's parameters and overrides."""
    study = configs.parse([f"{key}={value}" for key, value in params.items()])
    given = [override for override in configs.parse(lines) if not _is_hydra(override)]
    swept = {override.key_or_group for override in [*study, *given] if override.is_sweep_override()}
    return sorted({override.key_or_group for override in [*study, *given]} - swept)


def _is_hydra(override: Override) -> bool:
    """Whether the override sets a key of Hydra itself, which Hydra's schema checks."""
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _lines(override: Override) -> list[str]:
    """One override per value of a sweep; the override itself if it is not a sweep."""
    if not override.is_sweep_override():
        return [override.input_line]
    return [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]


def list_values(override: Override) -> list[Any]:
    """The values of a sweep, the bounds of an interval, or the single value."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_interval_sweep():
        return [override.value().start, override.value().end]
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def _typed_values(override: Override) -> list[str | None]:
    """`list_values` as they were typed, such as 2024_05, which Hydra reads as 202405; None if not known."""
    count = len(list_values(override))
    if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        typed = override.get_value_string().split(",")
        return typed if len(typed) == count else [None] * count
    is_one = not override.is_sweep_override() and not override.is_delete()
    return [override.get_value_string()] if is_one else [None] * count


def _check_single(overrides: list[Override]) -> None:
    """Reject a sweep in a single run."""
    for override in overrides:
        if override.is_sweep_override():
            key, text = override.key_or_group, override.get_value_string()
            other = f", or write a list as {shlex.quote(f'{key}=[{text}]')} or a string as {shell_override(key, text)}"
            simple = override.value_type == ValueType.SIMPLE_CHOICE_SWEEP
            search = " hydra/sweeper=optuna" if override.is_interval_sweep() else ""
            raise ValueError(f"{override.input_line}: several values are a sweep; add -m{search}{other * simple}")


def _set_values(job: ComposedJob, overrides: list[Override], index: int) -> DictConfig:
    """Set one value of each override in the job's config, checked against the yaml, and then against references."""
    keys, config = job.keys(), copy.deepcopy(job.config)
    references = []
    for override in overrides:
        value, typed = _choose(list_values(override), index), _choose(_typed_values(override), index)
        if override.is_interval_sweep():
            numbers = read_interval(override, resolve_value(job.config, override.key_or_group))
            value, typed = _choose([numbers.low, numbers.high], index), None
        for key, item in _leaves(override.key_or_group, value, keys):
            _check_key(override, key, keys, job)
            if "${" in str(item):
                references.append((override.input_line, key, item))
            else:
                text = typed if key == override.key_or_group else None
                check_value(override.input_line, key, item, resolve_value(job.config, key), typed=text)
            OmegaConf.update(config, key, item)
    for line, key, item in references:
        OmegaConf.update(config, key, item)
        if "${hydra:" not in str(item):
            check_value(line, key, resolve_value(config, key), resolve_value(job.config, key))
    return config


def _leaves(key: str, value: Any, keys: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Split a mapping that overrides a mapping into its items: `optimizer={lr: 1}` is `optimizer.lr=1`."""
    if isinstance(value, dict) and isinstance(keys.get(key), dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item, keys)
    else:
        yield key, value


def _check_key(override: Override, key: str, keys: dict[str, Any], job: ComposedJob) -> None:
    """Reject a key that is not in the yamls, and an override that adds or removes a key."""
    line = override.input_line
    if override.is_delete():
        raise ValueError(f"{line}: keys cannot be removed; set {key} to another value")
    is_open = any(key.startswith(f"{mapping}.") and mapping in keys for mapping in OPEN_MAPPINGS)
    if key not in keys and not is_open:
        raise ValueError(
            f"{line}: there is no key {key}{job.describe_option(key)}{suggest_key(key, keys | job.choices)}"
        )
    if override.is_add():
        raise ValueError(f"{line}: keys cannot be added; write {line[1:]}")


def _find_comment(key: str, file: Path | None) -> str:
    """The yaml comment of a required key as " (comment)"."""
    if file is None or not file.is_file():
        return ""
    name = re.escape(key.rpartition(".")[2])
    found = re.search(rf"^ *{name}: *\?\?\? *# *(.+)$", file.read_text(), re.MULTILINE)
    return f" ({found[1]})" if found else ""

"""Start-up checks of overrides, before the imports that take seconds.

Hydra lets three kinds of mistake pass: a key that no yaml has (`+lr=3`), a value of another type (`optimizer.lr=fast`),
and a required value that is not given. Here the yaml is the schema, and each mistake is answered in one line.
"""

import copy
import hashlib
import re
from argparse import Namespace
from collections.abc import Iterator
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
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from clap.config import flatten
from clap.config.values import LOCAL_KEYS, check_value, suggest, suggest_key


def resolve_value(config: DictConfig, key: str) -> Any:
    """A key's value as plain data, or "???" if it is missing or refers to what only a running job knows."""
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return "???"


VERSION_BASE = "1.3"


def name_folder(overrides: str, longest: int = 120) -> str:
    """A job's overrides as the name of one folder: no slashes, and a hash in place of what is too long."""
    name = re.sub(r"[^\w.,=+-]+", "_", overrides) or "default"
    if len(name) <= longest:
        return name
    return f"{name[:longest]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


# In conf/*.yaml: ${folder_name:${hydra.job.override_dirname}}, and ${local_keys:} or ${local_keys:more,keys}
OmegaConf.register_new_resolver("folder_name", name_folder, replace=True)
OmegaConf.register_new_resolver("local_keys", lambda *more: [*LOCAL_KEYS, *more], replace=True)


def check_overrides(argv: list[str], *, config_dir: Path, config_name: str) -> None:
    """Compose what a command line asks for, and refuse its first mistake.

    Of a sweep, every value is checked and every option composed at least once, not every combination.

    Raises:
        ValueError: an override names an unknown option or key, has a value of another type, adds or removes a key, or a
            required value is missing. Hydra's own exceptions pass through.
    """
    args, unknown = get_args_parser().parse_known_args(argv)
    if unknown:
        what = "there is no such flag" if unknown[0].startswith("-") else "flags stand before or after all overrides"
        raise ValueError(f"{unknown[0]}: {what}; --hydra-help lists the flags")
    if args.hydra_help or args.shell_completion or args.experimental_rerun:
        return
    configs = Configs.open(args, config_dir=config_dir, config_name=config_name)
    overrides = configs.parse(args.overrides)
    hydra_lines = [override.input_line for override in overrides if _is_hydra(override)]
    overrides = [override for override in overrides if not _is_hydra(override)]
    groups, values = configs.split(overrides)
    fixed = [override.input_line for override in groups if not override.is_sweep_override()]
    main = configs.compose([*hydra_lines, *fixed])
    if args.multirun or main.mode == RunMode.MULTIRUN:
        given = {override.key_or_group for override in overrides}
        study = [f"{key}={value}" for key, value in main.sweep.items() if key not in given]
        groups, values = configs.split(configs.parse(study) + overrides)
    else:
        _check_single(overrides)
    for job in _compose_jobs(configs, groups, hydra_lines=hydra_lines):
        config = _set_values(job, values)
        if not (args.cfg or args.help or args.info):
            _check_complete(config, job, files=config_dir)


@dataclass
class ComposedJob:
    """One composed configuration; of its `hydra` part only mode, sweep and each group's option."""

    config: DictConfig
    choices: dict[str, str]
    mode: RunMode | None
    sweep: dict[str, Any]

    def keys(self) -> dict[str, Any]:
        """Every key by its full name, mappings and their items alike, with its raw value."""
        return dict(flatten(OmegaConf.to_container(self.config)))

    def describe_option(self, key: str) -> str:
        """The words " with optimizer=adam" for a key of that group, or nothing for a key of none."""
        group = key.split(".")[0]
        return f" with {group}={self.choices[group]}" if self.choices.get(group) else ""


@dataclass
class Configs:
    """The yaml files that a command line sees."""

    loader: ConfigLoaderImpl
    name: str
    composed: dict[tuple[str, ...], ComposedJob] = field(default_factory=dict)

    @classmethod
    def open(cls, args: Namespace, *, config_dir: Path, config_name: str) -> "Configs":
        """Find the files where Hydra will, with the flags that move them."""
        version.setbase(VERSION_BASE)
        setup_globals()
        path = create_config_search_path(str(config_dir.parent / args.config_path if args.config_path else config_dir))
        if args.config_dir is not None:
            added = f"file://{Path(args.config_dir).resolve()}"
            path.prepend(provider="command-line", path=added, anchor=SearchPathQuery(provider="schema"))
        return cls(ConfigLoaderImpl(path), args.config_name or config_name)

    def parse(self, lines: list[str]) -> list[Override]:
        """Read overrides by Hydra's grammar."""
        try:
            return OverridesParser.create(config_loader=self.loader).parse_overrides(lines)
        except OverrideParseException as error:
            key, sign, value = error.override.partition("=")
            quoted = f"; a value with special characters is quoted: '{key}=\"{value}\"'" if sign else ""
            raise ValueError(f"{error.override}: an override is written key=value{quoted}") from error

    def split(self, overrides: list[Override]) -> tuple[list[Override], list[Override]]:
        """Checked overrides that choose options of groups, and overrides that set values of keys."""
        chooses = [bool(self.options(o.key_or_group)) and not isinstance(o.value(), dict) for o in overrides]
        groups = [override for override, chosen in zip(overrides, chooses, strict=True) if chosen]
        for override in groups:
            self.check_group(override)
        return groups, [override for override, chosen in zip(overrides, chooses, strict=True) if not chosen]

    def options(self, group: str) -> list[str]:
        """The options of a group, none if there is no such group; _names are parts of other yamls."""
        return [name for name in self.loader.get_group_options(group) if not name.startswith("_")]

    def check_group(self, override: Override) -> None:
        """Refuse a choice that is not among its group's options, and one that adds or removes a group."""
        line, group = override.input_line, override.key_or_group
        options = ", ".join(self.options(group))
        if override.is_delete():
            raise ValueError(f"{line}: a group cannot be removed; write {group}=OPTION with one of: {options}")
        if override.is_add() or override.is_force_add():
            raise ValueError(f"{line}: + adds no group; write {line.lstrip('+')}")
        choices = [option for value in _values(override) for option in (value if isinstance(value, list) else [value])]
        if not choices:
            raise ValueError(f"{line}: no option of {group} matches (options: {options})")
        for option in choices:
            folder, _, name = f"{group}/{option}".rpartition("/")
            if name not in self.options(folder):
                raise ValueError(
                    f"{line}: {group} has no option {option}{suggest(name, self.options(folder))} (options: {options})"
                )

    def compose(self, lines: list[str]) -> ComposedJob:
        """Compose the yamls under chosen options, before values are set; once for the same options."""
        if tuple(lines) in self.composed:
            return self.composed[tuple(lines)]
        config = self.loader.load_configuration(self.name, lines, RunMode.MULTIRUN)
        with open_dict(config):
            settings = config.pop("hydra")
        sweep = OmegaConf.to_container(settings.sweeper).get("params") or {}
        job = ComposedJob(config, choices=dict(settings.runtime.choices), mode=settings.mode, sweep=sweep)
        return self.composed.setdefault(tuple(lines), job)


def _compose_jobs(configs: Configs, groups: list[Override], *, hydra_lines: list[str]) -> Iterator[ComposedJob]:
    """As many jobs as the longest list of options has; the shorter lists are repeated."""
    choices = [_lines(override) for override in groups]
    for index in range(max(map(len, choices), default=1)):
        yield configs.compose([*hydra_lines, *(lines[index % len(lines)] for lines in choices)])


def _is_hydra(override: Override) -> bool:
    """Is this one of Hydra's own keys, which its schema checks?"""
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _lines(override: Override) -> list[str]:
    """The override of each job of a sweep, or the one."""
    if not override.is_sweep_override():
        return [override.input_line]
    return [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]


def _values(override: Override) -> list[Any]:
    """The values of a sweep, the ends of an interval, or the one value."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_interval_sweep():
        return [override.value().start, override.value().end]
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def _check_single(overrides: list[Override]) -> None:
    """Refuse a sweep where one run was asked for."""
    for override in overrides:
        if override.is_sweep_override():
            key, text = override.key_or_group, override.get_value_string()
            other = f"; a list is written '{key}=[{text}]', a text '{key}=\"{text}\"'"
            simple = override.value_type == ValueType.SIMPLE_CHOICE_SWEEP
            raise ValueError(
                f"{override.input_line}: several values make a sweep, which needs -m{other if simple else ''}"
            )


def _set_values(job: ComposedJob, overrides: list[Override]) -> DictConfig:
    """The job's config with values set, each checked against the yaml's; references are checked after all are set."""
    keys, config = job.keys(), copy.deepcopy(job.config)
    references = []
    for override in overrides:
        for value in _values(override):
            for key, item in _leaves(override.key_or_group, value, keys):
                _check_key(override, key, keys, job)
                if "${" in str(item):
                    references.append((override.input_line, key, item))
                else:
                    check_value(override.input_line, key, item, resolve_value(job.config, key))
                OmegaConf.update(config, key, item)
    for line, key, item in references:
        OmegaConf.update(config, key, item)
        if "${hydra:" not in str(item):
            check_value(line, key, resolve_value(config, key), resolve_value(job.config, key))
    return config


def _leaves(key: str, value: Any, keys: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A mapping given for a mapping is one override for each of its items, `optimizer={lr: 1}` as `optimizer.lr=1`."""
    if isinstance(value, dict) and isinstance(keys.get(key), dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item, keys)
    else:
        yield key, value


def _check_key(override: Override, key: str, keys: dict[str, Any], job: ComposedJob) -> None:
    """Refuse a key that the yamls do not have, and one that is added or removed."""
    line = override.input_line
    if override.is_delete():
        raise ValueError(f"{line}: keys are not removed; set {key} to another value")
    if key not in keys:
        raise ValueError(
            f"{line}: there is no key {key}{job.describe_option(key)}{suggest_key(key, keys | job.choices)}"
        )
    if override.is_add():
        raise ValueError(f"{line}: + adds no key; write {line[1:]}")


def _check_complete(config: DictConfig, job: ComposedJob, *, files: Path) -> None:
    """Refuse to start without a required value."""
    missing = [key for key, value in flatten(OmegaConf.to_container(config)) if value == "???"]
    if missing:
        key = missing[0]
        raise ValueError(
            f"{' and '.join(missing)} must be given{job.describe_option(key)}: "
            f"add {key}=VALUE{_comment(key, job, files)}"
        )


def _comment(key: str, job: ComposedJob, files: Path) -> str:
    """What the yamls say behind a required key, the chosen option's first, as " (comment)"."""
    *group, name = key.split(".")
    folder = files.joinpath(*group[:1])
    chosen = folder / f"{job.choices.get(folder.name)}.yaml"
    for file in sorted(folder.glob("*.yaml"), key=lambda file: (file != chosen, file)):
        if found := re.search(rf"^ *{name}: *\?\?\? *# *(.+)$", file.read_text(), re.MULTILINE):
            return f" ({found[1]})"
    return ""

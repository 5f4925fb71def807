"""A study: the factors of a yaml in conf/experiment and the jobs that they make. Its first levels are the baseline."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from clap.config.compose import find_conf_dir
from clap.config.overrides import VERSION_BASE
from clap.config.values import suggest

DESIGNS = ("grid", "one_at_a_time")
KEYS = ("design", "metrics", "minutes")  # of study in a yaml
SEED = "seed"


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Args:
        factors: key or group -> its levels, the baseline's first.
        metrics: names of the metrics that count, higher is better, the leading one first.
        design: `grid`, every combination; `one_at_a_time`, one factor changes and the others stay at the baseline.
        minutes: budget for all jobs on two CPU cores, if there is one.
        folder: of the sweep.
    """

    name: str
    factors: dict[str, list[str]]
    seeds: list[str]
    metrics: list[str]
    design: str
    minutes: float | None
    folder: str

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ValueError(f"study.design={self.design!r} of {self.name} is not one of {', '.join(DESIGNS)}")
        if not self.factors or not self.metrics:
            raise ValueError(
                f"study {self.name} needs factors, as hydra.sweeper.params, and study.metrics; it has "
                f"{len(self.factors)} and {len(self.metrics)}"
            )
        if self.metrics[0].endswith("median_rank"):
            raise ValueError(
                f"study {self.name} leads with {self.metrics[0]}, where lower is better; name another first"
            )

    def cells(self) -> list[dict[str, str]]:
        """Every configuration that is compared, the baseline first: {factor: level}."""
        cells = [dict(zip(self.factors, levels, strict=True)) for levels in itertools.product(*self.factors.values())]
        return one_factor_at_a_time(cells) if self.design == "one_at_a_time" else cells


def parse_study(config: DictConfig, lines: Sequence[str] = ()) -> Study | None:
    """The study that a config, composed with its `hydra` part, declares; `lines` are a command line's overrides."""
    if config.get("study") is None:
        return None
    name = config.hydra.runtime.choices.experiment
    for key in config.study:
        if key not in KEYS:
            raise ValueError(f"study {name} has no key study.{key}{suggest(key, KEYS)}; there are {', '.join(KEYS)}")
    swept = find_factors(config.hydra.sweeper.get("params"), lines)
    factors = {key: list_levels(override) for key, override in swept.items()}
    return Study(
        name,
        factors={key: values for key, values in factors.items() if key != SEED},
        seeds=factors.get(SEED, [str(config.seed)]),
        metrics=list(config.study.get("metrics") or []),
        design=config.study.get("design"),
        minutes=config.study.get("minutes"),
        folder=config.hydra.sweep.dir,
    )


def check_metrics(metrics: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a metric that no run will have, before hours of training."""
    for name in metrics:
        if name not in known:
            advice = suggest(name, known) or f"; there are {', '.join(known)}"
            raise ValueError(f"study.metrics: no run would have {name}{advice}")


def find_factors(params: Mapping[str, Any] | None, lines: Sequence[str] = ()) -> dict[str, Override]:
    """What a sweeper's parameters or a command line sweep, with the override that holds: the command line's."""
    last = {override.key_or_group: override for override in parse_overrides(params, lines)}
    swept = {override.key_or_group for override in parse_overrides(params) if override.is_sweep_override()}
    return {key: override for key, override in last.items() if key in swept or override.is_sweep_override()}


def parse_overrides(params: Mapping[str, Any] | None, lines: Sequence[str] = ()) -> list[Override]:
    """A sweeper's parameters and a command line's overrides, the later one of a key."""
    lines = [*(f"{key}={value}" for key, value in (params or {}).items()), *lines]
    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=hydra.config_loader if hydra else None)  # which glob(*) asks
    return list({override.key_or_group: override for override in parser.parse_overrides(lines)}.values())


def one_factor_at_a_time(cells: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Those that differ from the first in one key at most; seeds do not count."""
    first = cells[0]
    return [cell for cell in cells if sum(cell[key] != first[key] for key in cell if key != SEED) <= 1]


def list_levels(override: Override) -> list[str]:
    """The values that an override takes in a sweep, or its one value, as text."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def load_study(name: str) -> Study:
    """The study that conf/experiment/<name>.yaml declares.

    Raises:
        ValueError: there is no such experiment, or it is not a study.
    """
    folder = find_conf_dir()
    studies = sorted(path.stem for path in (folder / "experiment").glob("*.yaml") if "\nstudy:" in path.read_text())
    if name not in studies:
        raise ValueError(f"{name!r} is not a study; conf/experiment has the studies {', '.join(studies)}")
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        config = compose("config", [f"experiment={name}"], return_hydra_config=True)
    return parse_study(config)

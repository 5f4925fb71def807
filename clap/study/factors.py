"""Studies of conf/experiment: their factors, levels and cells. The first level of each factor is the baseline."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from clap.config.compose import find_conf_dir
from clap.config.overrides import VERSION_BASE
from clap.config.values import suggest
from clap.evaluation.metric_names import lower_is_better

DESIGNS = ("grid", "one_at_a_time")
KEYS = ("design", "metrics", "minutes")  # allowed in `study` in a yaml
SEED = "seed"
FOLD = "dataset.test_fold"
# Their options are parameters of every run.
GROUPS = ("audio_encoder", "text_encoder", "fusion", "loss", "dataset", "augmentation")
REPEATS = (SEED, FOLD)  # keys that repeat a configuration: other seeds, and the parts of a cross-validation


class Repeat(NamedTuple):
    """Seed and fold of a run of a configuration; fold is None without cross-validation."""

    seed: str
    fold: str | None = None


@dataclass(frozen=True)
class Study:
    """The configurations that a study compares, and the metrics.

    Args:
        factors: key or group -> its levels, that of the baseline first.
        metrics: names of the metrics to report, higher is better, the leading one first.
        design: `grid` runs every combination; `one_at_a_time` varies one factor and keeps the others at the baseline.
        minutes: budget for all jobs on two CPU cores, or None.
        folder: folder of the sweep.
        folds: folds of a cross-validation, which are parts of one number; empty without one.
    """

    name: str
    factors: dict[str, list[str]]
    seeds: list[str]
    metrics: list[str]
    design: str
    minutes: float | None
    folder: str
    folds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ValueError(
                f"study.design={self.design!r} of {self.name} is not one of {', '.join(DESIGNS)}; change it"
            )
        if not self.factors or not self.metrics:
            raise ValueError(
                f"study {self.name} has {len(self.factors)} factors and {len(self.metrics)} metrics; "
                "set at least one of each in hydra.sweeper.params and study.metrics"
            )
        if lower_is_better(self.metrics[0]):
            raise ValueError(
                f"the leading metric of study {self.name} is {self.metrics[0]}, where lower is better; "
                "put one first where higher is better"
            )

    def cells(self) -> list[Mapping[str, str]]:
        """All configurations of the study as {factor: level}, the baseline first."""
        return list_cells(self.factors, self.design)

    def repeats(self) -> list[Repeat]:
        """Seed and fold of every run of a configuration."""
        return [Repeat(seed, fold) for seed in self.seeds for fold in self.folds or [None]]


def parse_study(config: DictConfig, overrides: Sequence[str] = ()) -> Study | None:
    """The study that a config with its `hydra` node declares; `overrides` come from the command line."""
    if config.get("study") is None:
        return None
    name = config.hydra.runtime.choices.experiment
    for key in config.study:
        if key not in KEYS:
            raise ValueError(f"study {name} has no key study.{key}{suggest(key, KEYS)}; keys: {', '.join(KEYS)}")
    swept = find_factors(config.hydra.sweeper.get("params"), overrides)
    factors = {key: list_levels(override) for key, override in swept.items()}
    return Study(
        name,
        factors={key: values for key, values in factors.items() if key not in REPEATS},
        seeds=factors.get(SEED, [str(config.seed)]),
        metrics=list(config.study.get("metrics") or []),
        design=config.study.get("design"),
        minutes=config.study.get("minutes"),
        folder=config.hydra.sweep.dir,
        folds=factors.get(FOLD, []),
    )


def find_factors(params: Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> dict[str, Override]:
    """The swept keys of sweeper parameters and a command line, each with its override; the command line wins."""
    last = {override.key_or_group: override for override in parse_overrides(params, overrides)}
    swept = {override.key_or_group for override in parse_overrides(params) if override.is_sweep_override()}
    return {key: override for key, override in last.items() if key in swept or override.is_sweep_override()}


def parse_overrides(params: Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> list[Override]:
    """Parse sweeper parameters and overrides of a command line; the last one of a key wins."""
    lines = [*(f"{key}={value}" for key, value in (params or {}).items()), *overrides]
    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=hydra.config_loader if hydra else None)  # glob(*) needs it
    return list({override.key_or_group: override for override in parser.parse_overrides(lines)}.values())


def list_cells(factors: Mapping[str, Sequence[str]], design: str) -> list[Mapping[str, str]]:
    """All configurations of a design as {factor: level}, that of the first levels first."""
    cells = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    return one_factor_at_a_time(cells) if design == "one_at_a_time" else cells


def one_factor_at_a_time(cells: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The cells that differ from the first in at most one key, ignoring REPEATS."""
    first = cells[0]
    return [cell for cell in cells if sum(cell[key] != first[key] for key in cell if key not in REPEATS) <= 1]


def drop_repeats(levels: Mapping[str, str]) -> dict[str, str]:
    """The levels of a job without its seed and fold: its configuration."""
    return {key: level for key, level in levels.items() if key not in REPEATS}


def list_levels(override: Override) -> list[str]:
    """The values of a swept override, or its single value, as strings."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def load_study(name: str) -> Study:
    """Load the study of conf/experiment/<name>.yaml.

    Raises:
        ValueError: the experiment does not exist, or is not a study.
    """
    folder = find_conf_dir()
    studies = sorted(path.stem for path in (folder / "experiment").glob("*.yaml") if "\nstudy:" in path.read_text())
    if name not in studies:
        raise ValueError(
            f"{name!r} is not a study{suggest(name, studies)}; studies in conf/experiment: {', '.join(studies)}"
        )
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        config = compose("config", [f"experiment={name}"], return_hydra_config=True)
    return parse_study(config)


def read_question(yaml: Path) -> str:
    """The question of a study: the comment above the command in its yaml."""
    words = []
    for line in yaml.read_text().splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        words += [] if line.startswith("# @package") else [line.removeprefix("# ")]
    return " ".join(words)

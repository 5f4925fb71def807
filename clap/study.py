"""A study: the factors of a yaml in conf/experiment and the jobs that they make. Its first levels are the baseline."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

DESIGNS = ("grid", "one_at_a_time")
SEED = "seed"


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Args:
        factors: key or group -> its levels, the baseline's first.
        metrics: names of the metrics that count, the leading one first.
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

    def cells(self) -> list[dict[str, str]]:
        """Every configuration that is compared, the baseline first: {factor: level}."""
        cells = [dict(zip(self.factors, levels, strict=True)) for levels in itertools.product(*self.factors.values())]
        return keep_near_first(cells) if self.design == "one_at_a_time" else cells


def keep_near_first(cells: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Those that differ from the first in one key at most; seeds do not count."""
    first = cells[0]
    return [cell for cell in cells if sum(cell[key] != first[key] for key in cell if key != SEED) <= 1]


def parse_overrides(params: Mapping[str, Any] | None, lines: Sequence[str] = ()) -> list[Override]:
    """A sweeper's parameters and a command line's overrides, the later one of a key."""
    lines = [*(f"{key}={value}" for key, value in (params or {}).items()), *lines]
    parsed = OverridesParser.create().parse_overrides(lines)
    return list({override.key_or_group: override for override in parsed}.values())


def levels(override: Override) -> list[str]:
    """The values that an override takes in a sweep, or its one value, as text."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]

"""What a search may vary, as Hydra's overrides write it, and the options of its sweeper; checked without Optuna.

optimizer.lr=interval(1e-5,1e-3)             numbers between two bounds
optimizer.lr=tag(log, interval(1e-5,1e-3))   uniform in the logarithm
dataset.batch_size=interval(8,64)            integers, because the yaml has one; both bounds included
dataset.batch_size=range(8,64,8)             steps, without the end
audio_encoder=htsat_nano,cnn14_nano          a choice
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.override_parser.types import Override, RangeSweep

from clap.config.secrets import hide_secrets
from clap.config.values import MINIMA, TYPES, check_value

SWEEPER = "hydra_plugins.clap_search.OptunaSweeper"
LOG = "log"
DIGITS = 4  # significant digits of a number that a sampler draws: it is part of the name of the job


@dataclass(frozen=True)
class Choice:
    """One of several values, as overrides write them."""

    values: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: integers if `low` is one, and with a step those it reaches."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int)

    def round(self, value: float) -> float:
        """A drawn number with few digits, within the bounds."""
        if self.is_integer:
            return value
        digits = DIGITS if self.step is None else 10
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    @property
    def count(self) -> float:
        """How many numbers it has; infinity for an interval of real numbers."""
        step = self.step or (1 if self.is_integer else None)
        return math.inf if step is None else round((self.high - self.low) / step) + 1

    def __iter__(self) -> Iterator[float]:
        """All numbers, of which an interval of real numbers has none to list."""
        count = 0 if self.count == math.inf else int(self.count)
        return (self.round(self.low + index * (self.step or 1)) for index in range(count))


Space = Mapping[str, Choice | Range]


@dataclass(frozen=True)
class SearchSettings:
    """The options hydra.sweeper.* of conf/hydra/sweeper/optuna.yaml.

    Raises:
        ValueError: an option is out of range.
    """

    n_trials: int = 20
    n_jobs: int | None = None
    sampler: str = "tpe"
    seed: int = 0
    pruner: str | None = None
    storage: str | None = None
    study_name: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            key, value = f"hydra.sweeper.{field.name}", getattr(self, field.name)
            check_value(f"{key}={value}", key, value, field.default)
            if value is not None and value < MINIMA.get(key, value):
                raise ValueError(f"{key}={value} must be at least {MINIMA[key]}; raise it, or remove the override")
        if self.storage is not None and hide_secrets(self.storage) != self.storage:
            raise ValueError(
                f"hydra.sweeper.storage={hide_secrets(self.storage)} has a password, which each job would record; "
                "remove it, and set it where the database client reads it, such as PGPASSWORD"
            )


def read_settings(sweeper: Mapping[str, Any]) -> SearchSettings:
    """The options of a composed `hydra.sweeper`."""
    return SearchSettings(**{key: value for key, value in sweeper.items() if key not in ("_target_", "params")})


def check_sweep(overrides: Iterable[Override], sweeper: Mapping[str, Any], read_value: Callable[[str], Any]) -> None:
    """Reject what a sweeper cannot run: an interval of a grid, or options and a space that make no search.

    Args:
        sweeper: the composed `hydra.sweeper`.
        read_value: the value of a key before it is swept.
    """
    swept = [override for override in overrides if override.is_sweep_override()]
    for override in swept:
        if not override.is_interval_sweep() and is_empty(override):
            raise ValueError(f"{override.input_line}: it has no values; write range(START,STOP) with START<STOP")
        if override.is_interval_sweep() and sweeper["_target_"] == BasicSweeperConf._target_:
            raise ValueError(
                f"{override.input_line}: a sweep runs a list of values, and an interval is searched; add "
                "hydra/sweeper=optuna, or list values"
            )
    if sweeper["_target_"] == SWEEPER:
        check_sampler(read_settings(sweeper), read_space(swept, read_value))


def is_empty(override: Override) -> bool:
    """Whether a list or range of values has none."""
    has_no_step = override.is_range_sweep() and not override.value().step
    return has_no_step or not list(override.sweep_iterator())


def check_sampler(settings: SearchSettings, space: Space) -> None:
    """Reject a space that is empty, or that a sampler cannot draw from."""
    if not space:
        raise ValueError(
            "hydra/sweeper=optuna has nothing to search; add an interval or choices, such as "
            "'optimizer.lr=tag(log, interval(1e-5,1e-3))'"
        )
    if settings.sampler == "cmaes" and not any(isinstance(domain, Range) for domain in space.values()):
        raise ValueError(
            f"hydra.sweeper.sampler=cmaes draws numbers, and {', '.join(space)} are choices only; set "
            "hydra.sweeper.sampler=tpe or random, or add an interval"
        )


def read_space(overrides: Iterable[Override], read_value: Callable[[str], Any]) -> dict[str, Choice | Range]:
    """The keys that overrides let vary, with their values.

    Args:
        read_value: the value of a key before it is swept; an interval of one that is an integer has integers.

    Raises:
        ValueError: an interval is empty, without bounds, or cannot have a logarithm.
    """
    space: dict[str, Choice | Range] = {}
    for override in overrides:
        key = override.key_or_group
        if override.is_interval_sweep():
            space[key] = read_interval(override, read_value(key))
        elif override.is_range_sweep():
            space[key] = read_range(override)
        elif override.is_sweep_override():
            check_tags(override, allowed=())
            space[key] = Choice(tuple(dict.fromkeys(override.sweep_string_iterator())))
    return space


def read_interval(override: Override, current: Any = None) -> Range:
    """The numbers of `interval(low,high)`, which Hydra reads as real numbers, as integers where the key has them."""
    line, interval = override.input_line, override.value()
    low, high = interval.start, interval.end
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{line}: the bounds of an interval must be finite; write interval(LOW,HIGH) with two numbers")
    if not low < high:
        raise ValueError(
            f"{line}: the lower bound {low:g} is not below the upper bound {high:g}; write interval(LOW,HIGH)"
        )
    is_whole = float(low).is_integer() and float(high).is_integer()
    if is_whole and not accepts_fractions(override.key_or_group, current):
        low, high = int(low), int(high)
    return check_log(line, Range(low, high, log=has_log(override)))


def accepts_fractions(key: str, current: Any) -> bool:
    """Whether a key takes fractions; `current` is its value in the yaml."""
    types = TYPES.get(key) or TYPES.get(key.rpartition(".")[2]) or (type(current),)
    return float in types


def read_range(override: Override) -> Range:
    """The numbers of `range(start,stop,step)`, without `stop`."""
    sweep: RangeSweep = override.value()
    values = sorted(override.sweep_iterator())
    low, high, step = values[0], values[-1], abs(sweep.step)
    if has_log(override) and step != 1:
        raise ValueError(
            f"{override.input_line}: a logarithmic range has no step; remove {step:g}, or remove tag(log, ...)"
        )
    step = None if isinstance(low, int) and step == 1 else step
    return check_log(override.input_line, Range(low, high, step, log=has_log(override)))


def check_log(line: str, numbers: Range) -> Range:
    if numbers.log and numbers.low <= 0:
        raise ValueError(
            f"{line}: a logarithmic interval must be above 0, and begins at {numbers.low:g}; raise that bound, or "
            "remove tag(log, ...)"
        )
    return numbers


def has_log(override: Override) -> bool:
    check_tags(override, allowed=(LOG,))
    return LOG in override.value().tags


def check_tags(override: Override, *, allowed: tuple[str, ...]) -> None:
    if unknown := sorted(override.value().tags - set(allowed)):
        what = "log, of an interval or range of numbers" if LOG in unknown else LOG
        raise ValueError(f"{override.input_line}: there is no tag {unknown[0]} here; the only tag is {what}; remove it")


def count_configurations(space: Space) -> float:
    """How many configurations a space has; infinity with an interval of real numbers."""
    return math.prod(domain.count for domain in space.values())


def list_configurations(space: Space) -> Iterator[tuple]:
    """The values of all configurations of a space, none of one with an interval of real numbers."""
    return itertools.product(*space.values())

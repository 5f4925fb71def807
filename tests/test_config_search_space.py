"""What a search may vary is read from Hydra's overrides, and what makes no search is rejected."""

import pytest

from clap.config.search_space import (
    SWEEPER,
    Choice,
    Range,
    SearchSettings,
    check_sweep,
    count_configurations,
    list_configurations,
    read_space,
)
from clap.study.factors import parse_overrides

YAML = {"lr": 1e-3, "batch_size": 32, "trainer.ema_decay": None, "dataset.max_clips": None}


def read(*lines: str) -> dict:
    return read_space(parse_overrides(None, lines), YAML.get)


@pytest.mark.parametrize(
    ("line", "domain"),
    {
        "lr=interval(0,1)": Range(0.0, 1.0),
        "lr=tag(log, interval(1e-5,1e-3))": Range(1e-5, 1e-3, log=True),
        "lr=int(interval(1,3))": Range(1, 3),
        "batch_size=interval(8,64)": Range(8, 64),
        "dataset.max_clips=interval(8,64)": Range(8, 64),
        "trainer.ema_decay=interval(0,1)": Range(0.0, 1.0),
        "batch_size=range(8,33,8)": Range(8, 32, 8),
        "batch_size=tag(log, range(1,65))": Range(1, 64, log=True),
        "batch_size=range(4,1,-1)": Range(2, 4),
        "lr=range(0.1,0.45,0.1)": Range(0.1, 0.4, 0.1),
        "encoder=a,b,a": Choice(("a", "b")),
        "freeze=[],[text_encoder]": Choice(("[]", "[text_encoder]")),
    }.items(),
)
def test_override_is_read_with_the_type_of_the_yaml(line: str, domain: Range | Choice):
    (found,) = read(line).values()
    assert found == domain
    if isinstance(domain, Range):
        assert type(found.low) is type(domain.low)


def test_other_overrides_are_not_searched():
    assert read("lr=3", "freeze=[text_encoder]") == {}


@pytest.mark.parametrize(
    ("line", "error"),
    {
        "lr=interval(1,0)": "the lower bound 1 is not below the upper bound 0; write interval",
        "lr=interval(1,1)": "the lower bound 1 is not below the upper bound 1",
        "lr=interval(0,inf)": "the bounds of an interval must be finite; write interval",
        "lr=interval(nan,1)": "the bounds of an interval must be finite",
        "lr=tag(log, interval(0,1))": "must be above 0, and begins at 0; raise that bound",
        "lr=tag(log, interval(-1,1))": "must be above 0, and begins at -1",
        "batch_size=tag(log, range(0,4))": "must be above 0, and begins at 0",
        "lr=tag(log, range(0.1,0.5,0.1))": "a logarithmic range has no step; remove 0.1",
        "lr=tag(lgo, interval(0,1))": "there is no tag lgo here; the only tag is log; remove it",
        "encoder=tag(log, choice(1,2))": "the only tag is log, of an interval or range of numbers",
    }.items(),
)
def test_impossible_interval_is_rejected(line: str, error: str):
    with pytest.raises(ValueError, match=f"^{line[:3]}.*{error}"):
        read(line)


def test_configurations_are_counted_and_listed():
    space = read("batch_size=range(8,33,8)", "encoder=a,b")
    assert count_configurations(space) == len(list(list_configurations(space))) == 8
    assert list(Range(0.1, 0.4, 0.1)) == [0.1, 0.2, 0.3, 0.4] and Range(0.1, 0.4, 0.1).count == 4
    space |= read("lr=interval(0,1)")
    assert count_configurations(space) == float("inf") and not list(list_configurations(space))


def test_drawn_number_is_rounded_within_its_bounds():
    assert Range(1e-5, 1e-3).round(1.23456e-4) == 1.235e-4
    assert Range(0.12344, 1.0).round(0.12344) == 0.12344
    assert Range(100000, 200000).round(123456) == 123456


def check(*lines: str, sweeper: str = SWEEPER, **settings: object) -> None:
    check_sweep(parse_overrides(None, lines), {"_target_": sweeper, "params": None, **settings}, YAML.get)


def test_search_is_accepted():
    check("lr=interval(0,1)", "encoder=a,b", sampler="cmaes", pruner="median")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0 must be at least 1; raise it"),
        ({"n_jobs": 0}, "hydra.sweeper.n_jobs=0 must be at least 1"),
        ({"n_trials": "many"}, "hydra.sweeper.n_trials must be an integer, such as 20 in the yaml"),
        ({"sampler": "grid"}, "hydra.sweeper.sampler must be one of tpe, random, cmaes"),
        ({"pruner": "mean"}, "hydra.sweeper.pruner must be one of null, median, hyperband"),
        ({"seed": None}, "hydra.sweeper.seed must be an integer"),
        ({"storage": "postgresql://me:hunter2@host/db"}, r"postgresql://\*\*\*@host/db has a password"),
    ],
)
def test_option_out_of_range_is_rejected(settings: dict, error: str):
    with pytest.raises(ValueError, match=error):
        SearchSettings(**settings)


def test_search_without_anything_to_draw_is_rejected():
    with pytest.raises(ValueError, match="nothing to search; add an interval or choices"):
        check("lr=3")
    with pytest.raises(ValueError, match="cmaes draws numbers, and encoder, loss are choices only; set"):
        check("encoder=a,b", "loss=c,d", sampler="cmaes")


def test_interval_of_a_grid_is_rejected():
    basic = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    with pytest.raises(ValueError, match="an interval is searched; add hydra/sweeper=optuna, or list values"):
        check("lr=interval(0,1)", sweeper=basic)
    check("lr=interval(0,1)", sweeper="hydra_plugins.other.Sweeper")


@pytest.mark.parametrize("line", ["batch_size=range(3,1)", "batch_size=range(1,3,0)", "lr=range(0.5,0.1,0.1)"])
def test_range_without_a_value_is_rejected(line: str):
    with pytest.raises(ValueError, match="it has no values; write range"):
        check(line, sweeper="any")

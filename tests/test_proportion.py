"""Interval of a proportion against published values."""

from collections.abc import Callable

import pytest

from clap.proportion import Interval, wilson_interval


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_published_values(hits: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    interval = wilson_interval(hits / count, count)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [1, 7, 80, 1000.5])
def test_wilson_interval_contains_proportions_0_and_1(count: float) -> None:
    assert wilson_interval(0, count).low == 0 and 0 < wilson_interval(0, count).high < 1
    assert wilson_interval(1, count).high == 1 and 0 < wilson_interval(1, count).low < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(93.0, 80), "not percent"),
        (lambda: wilson_interval(0.5, 0), "count=0"),
        (lambda: wilson_interval(0.5, 80, level=95), "level=95"),
    ],
)
def test_wrong_arguments_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_interval_is_clipped_to_its_range() -> None:
    assert Interval(0.93, 1.03).clip(0.0, 1.0) == Interval(0.93, 1.0)
    assert Interval(-0.1, 0.2).clip(0.0, 1.0) == Interval(0.0, 0.2)

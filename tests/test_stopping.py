"""Early stopping names the best epoch and stops after the patience."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import OptionError
from featcache.stopping import EarlyStopping


def run(values: list[float], **options: object) -> tuple[int, int]:
    """Return the best epoch and the epoch after which it stopped (the last one if it never did)."""
    rule = EarlyStopping(**options)  # type: ignore[arg-type]
    for epoch, value in enumerate(values, 1):
        rule.update(epoch, value)
        if rule.should_stop:
            return rule.best_epoch, epoch
    return rule.best_epoch, len(values)


def test_stops_after_patience_without_improvement() -> None:
    assert run([1.0, 0.5, 0.6, 0.7, 0.4], patience=2, min_delta=0.0) == (2, 4)
    assert run([1.0, 0.5, 0.6, 0.4, 0.7, 0.7], patience=2, min_delta=0.0) == (4, 6)


def test_an_improvement_of_min_delta_is_none() -> None:
    assert run([1.0, 0.75, 0.75], patience=2, min_delta=0.25) == (1, 3)
    assert run([1.0, 0.74, 0.48], patience=2, min_delta=0.25) == (3, 3)


def test_accuracy_is_better_when_larger() -> None:
    assert run([0.1, 0.5, 0.4, 0.4], monitor="val_accuracy", patience=2, min_delta=0.0) == (2, 4)


def test_no_patience_never_stops() -> None:
    assert run([1.0, *[2.0] * 50], patience=None) == (1, 51)


def test_not_a_number_is_never_best() -> None:
    assert run([math.nan, math.nan, 3.0, math.nan, math.nan], patience=3, min_delta=0.0) == (3, 5)
    assert run([math.nan] * 5, patience=2) == (0, 2)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_without_min_delta_the_best_is_the_first_minimum_seen(values: list[float], patience: int) -> None:
    best, last = run(values, patience=patience, min_delta=0.0)
    seen = values[:last]
    assert best == seen.index(min(seen)) + 1
    assert last - best <= patience
    assert last == len(values) or last - best == patience


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"monitor": "loss"}, "Unknown monitor 'loss'"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"min_delta": -0.1}, "min_delta must not be negative"),
    ],
)
def test_refusals(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        EarlyStopping(**options)  # type: ignore[arg-type]

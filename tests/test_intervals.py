"""Intervals and tests of accuracies: known values, other ways to the same numbers, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featcache.errors import OptionError
from featcache.training import intervals
from featcache.training.intervals import Discordant

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)


def _hits(n: int, right: int) -> np.ndarray:
    return np.arange(n) < right


def test_the_accuracy_s_interval_is_that_of_resampled_rows() -> None:
    right = _hits(200, 150)
    found = intervals.accuracy_interval(right)
    rng = np.random.default_rng(1)
    drawn = right[rng.integers(0, 200, (10_000, 200))].mean(axis=1)  # row by row, as the books say
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.006)


def test_the_difference_s_interval_is_that_of_resampled_rows() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(300) < 0.7
    b = np.where(rng.random(300) < 0.8, a, rng.random(300) < 0.8)
    found = intervals.difference_interval(a, b)
    rows = rng.integers(0, 300, (10_000, 300))
    drawn = b[rows].mean(axis=1) - a[rows].mean(axis=1)
    assert found.value == pytest.approx(b.mean() - a.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.008)
    scipys = stats.bootstrap(
        (b.astype(float) - a,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(scipys), abs=0.01)


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_95_of_100_intervals_hold_the_truth(p: float) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = intervals.accuracy_interval(rng.random(250) < p, resamples=1000)
        held += found.low <= p <= found.high
    assert 0.91 < held / 400 < 0.98


def test_95_of_100_intervals_of_a_difference_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        luck = rng.random((2, 300))
        a, b = luck[0] < 0.7, np.where(luck[1] < 0.5, luck[0] < 0.7, rng.random(300) < 0.8)  # truth: .05
        found = intervals.difference_interval(a, b, resamples=1000)
        held += found.low <= 0.05 <= found.high
    assert 0.91 < held / 400 < 0.98


@settings(deadline=None)
@given(pairs)
def test_intervals_are_ordered_repeatable_and_change_sign_with_the_order(
    rows: list[tuple[bool, bool]],
) -> None:
    a, b = np.array(rows, dtype=bool).T
    one = intervals.difference_interval(a, b, resamples=200)
    assert one == intervals.difference_interval(a, b, resamples=200)
    assert -1 <= one.low <= one.high <= 1
    assert intervals.difference_interval(b, a, resamples=200).value == pytest.approx(-one.value)
    assert one.value == pytest.approx(b.mean() - a.mean())
    alone = intervals.accuracy_interval(a, resamples=200)
    assert 0 <= alone.low <= alone.high <= 1 and alone.value == a.mean()
    apart = intervals.discordant(a, b)
    assert apart.only_b - apart.only_a == b.sum() - a.sum() and apart.only_a == (a & ~b).sum()


def test_the_seed_decides_and_large_numbers_of_rows_cost_nothing() -> None:
    right = _hits(100_000, 76_543)
    found = intervals.accuracy_interval(right, seed=1)
    assert found != intervals.accuracy_interval(right, seed=2)
    sigma = math.sqrt(0.76543 * 0.23457 / 100_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sigma, rel=0.05)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_sum(b: int, c: int) -> None:
    n, k = b + c, min(b, c)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert intervals.mcnemar(Discordant(b, c)) == pytest.approx(expected)


def test_mcnemar_at_known_values() -> None:
    # Agresti, Categorical Data Analysis, 2nd edition, section 10.1: 86 against 150.
    assert intervals.mcnemar(Discordant(86, 150)) == pytest.approx(3.7e-5, rel=0.05)
    assert intervals.mcnemar(Discordant(0, 5)) == pytest.approx(2 / 32)
    assert intervals.mcnemar(Discordant(0, 0)) == 1


def test_holm_at_known_values() -> None:
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
    assert intervals.holm([0.02]) == [0.02] and intervals.holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_s_and_keeps_the_order(p: list[float]) -> None:
    corrected = intervals.holm(p)
    assert all(raw <= c <= min(1, raw * len(p)) + 1e-12 for raw, c in zip(p, corrected, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


@pytest.mark.parametrize("n", [1, 10, 500])
def test_the_exact_bound_of_a_clean_sheet(n: int) -> None:
    assert intervals.least_plausible(n) == pytest.approx(stats.binomtest(n, n).proportion_ci().low)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(OptionError, match="same rows, got 3 and 2"):
        intervals.difference_interval(_hits(3, 1), _hits(2, 1))
    with pytest.raises(OptionError, match="at least one row"):
        intervals.accuracy_interval(_hits(0, 0))
    with pytest.raises(OptionError, match="resamples"):
        intervals.accuracy_interval(_hits(3, 1), resamples=0)

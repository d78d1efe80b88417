"""Temperatures: the least cross-entropy, the same classes, and sense at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from featcache.heads.calibration import LEAST, MOST, best_temperature, tempered
from featcache.heads.neighbours import KNNHead
from featcache.metrics import expected_calibration_error
from tests.kit_heads import blobs


def _sampled(n: int, classes: int, factor: float, seed: int = 0) -> tuple[Any, Any]:
    """Return `factor` times the true logits of n rows, and classes drawn from these."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    y = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return logits * factor, y


def _loss(scores: Any, y: Any, temperature: float) -> float:
    return float(-log_softmax(scores / temperature, axis=1)[np.arange(len(y)), y].mean())


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("factor", [0.05, 1.0, 30.0])
def test_the_factor_of_true_logits_is_found(factor: float, classes: int) -> None:
    scores, y = _sampled(20_000, classes, factor)
    found, note = best_temperature(scores, y)
    assert found == pytest.approx(factor, rel=0.03) and note == ""
    assert expected_calibration_error(y, tempered(scores, found)) < 0.01


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.integers(20, 200), st.integers(2, 6), st.sampled_from([np.float32, np.float64])
)
def test_it_is_the_least_cross_entropy(seed: int, n: int, classes: int, dtype: Any) -> None:
    scores, y = _sampled(n, classes, 3.0, seed)
    scores = scores.astype(dtype)
    found, note = best_temperature(scores, y)
    wide = scores.astype(np.float64)
    best = minimize_scalar(lambda t: _loss(wide, y, np.exp(t)), bounds=(-6, 8), method="bounded")
    if not note:
        assert _loss(wide, y, found) <= best.fun + 1e-9
        assert _loss(wide, y, found) <= _loss(wide, y, 1.0) + 1e-12


def test_it_is_the_same_over_many_blocks_of_rows() -> None:
    scores, y = _sampled(6000, 1000, 5.0)  # two blocks
    half = [best_temperature(scores[part], y[part])[0] for part in (slice(0, 3000), slice(3000, 6000))]
    assert min(half) < best_temperature(scores, y)[0] < max(half)


def test_without_an_error_the_guess_is_cautious() -> None:
    y = np.arange(300) % 3
    scores = np.eye(3)[y] * 0.2  # right, but shy: softmax gives .38
    found, note = best_temperature(scores, y)
    assert "All 300 rows are right" in note
    confidence = tempered(scores, found).max(axis=1)
    assert confidence == pytest.approx(301 / 302)


def test_scores_that_say_nothing_get_even_probabilities() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 3))
    for useless, y in ((scores, scores.argmin(axis=1)), (np.zeros((300, 3)), np.arange(300) % 3)):
        found, note = best_temperature(useless, y)
        assert found == MOST and "nothing" in note
        assert tempered(useless, found) == pytest.approx(np.full((300, 3), 1 / 3), abs=1e-3)


def test_a_temperature_out_of_reach_is_said() -> None:
    y = np.arange(300) % 3
    scores = np.eye(3)[y] * 1e-9
    found, note = best_temperature(scores, y)
    assert found == LEAST and "small enough" in note


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(LEAST, MOST),
    st.sampled_from([1e-8, 1e-3, 1.0, 1e4]),
    st.sampled_from([np.float32, np.float64]),
)
def test_the_likeliest_class_stays(seed: int, temperature: float, spread: float, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.normal(size=(40, 5)) * spread + rng.integers(-3, 3)).astype(dtype)
    scores[:10] = np.round(scores[:10], 1)  # and some ties
    kept = scores.copy()
    P = tempered(scores, temperature)
    assert np.array_equal(scores, kept) and P.dtype == dtype
    assert np.array_equal(P.argmax(axis=1), scores.argmax(axis=1))
    assert np.isfinite(P).all() and np.allclose(P.sum(axis=1), 1, atol=1e-5)


def test_votes_are_smoothed_so_that_no_class_is_impossible() -> None:
    X, y = blobs()
    rows, truth = blobs(90, seed=1)
    truth[::8] = (truth[::8] + 1) % 3
    head = KNNHead(k=5).fit(X, y)
    votes = head.predict_proba(rows)
    head.calibrate(rows, truth)
    expected = softmax(np.log(votes * 5 + 1 / 3) / head.temperature_, axis=1)
    assert np.allclose(head.predict_proba(rows), expected, atol=1e-6)
    assert votes.min() == 0 < head.predict_proba(rows).min()

"""Logistic regression and ridge solve the problems scikit-learn states."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from featcache.errors import HeadError
from featcache.heads import scaling
from featcache.heads.convex import LogisticHead, RidgeHead, noted
from tests.kit_heads import blobs


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(8, 60),
    columns=st.integers(1, 60),
    classes=st.integers(2, 4),
    alpha=st.sampled_from([0.01, 1.0, 300.0]),
    standardize=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ridge_is_ridge_classifier(
    rows: int, columns: int, classes: int, alpha: float, standardize: bool, seed: int
) -> None:
    """Both ways of solving it, more rows than columns and fewer."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(2, 3, (rows, columns)), np.arange(rows) % classes
    head = RidgeHead(alpha=alpha, standardize="yes" if standardize else "no").fit(X, y)
    Z = StandardScaler().fit_transform(X) if standardize else X
    reference = RidgeClassifier(alpha=alpha, solver="cholesky").fit(Z, y)
    assert np.allclose(head.coef_, reference.coef_, atol=1e-8)
    assert np.allclose(head.intercept_, reference.intercept_, atol=1e-8)
    assert np.allclose(head.decision_function(X), reference.decision_function(Z), atol=1e-8)


def test_ridge_reads_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(200, 30)
    for table in (X, X[:20]):  # by columns' products, then by rows'
        whole = RidgeHead().fit(table, y[: len(table)])
        monkeypatch.setattr("featcache.heads.squares.row_blocks", lambda n, d: scaling.row_blocks(n, d, 70))
        parts = RidgeHead().fit(table, y[: len(table)])
        assert np.allclose(whole.coef_, parts.coef_, atol=1e-10)


def test_ridge_without_a_solution_says_so() -> None:
    X = np.repeat(np.array([[1e6], [-1e6]]), 40, axis=1) * np.arange(1, 41)
    with pytest.raises(HeadError, match="alpha=1e-30"):
        RidgeHead(alpha=1e-30, standardize="no").fit(np.repeat(X, 25, axis=0), np.arange(50) % 2)


@pytest.mark.parametrize("classes", [2, 10])
def test_logistic_regression_on_standardised_rows(classes: int) -> None:
    X, y = load_digits(n_class=classes, return_X_y=True)
    head = LogisticHead(C=0.1, tol=1e-6).fit(X.astype(np.float16), y)
    Z = StandardScaler().fit_transform(X)
    reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(Z, y)
    assert np.allclose(head.coef_, reference.coef_, atol=2e-3)
    assert np.allclose(head.predict_proba(X), reference.predict_proba(Z), atol=2e-3)
    assert head.converged_
    assert head.notes_ == []
    assert head.n_iter_ > 1


def test_not_converged_is_a_note_and_no_warning() -> None:
    X, y = load_digits(return_X_y=True)
    head = LogisticHead(max_iter=2).fit(X, y)
    assert not head.converged_
    assert len(head.notes_) == 1
    assert "converge" in head.notes_[0]
    assert head.n_iter_ == 2


def test_other_warnings_pass() -> None:
    def fit() -> int:
        warnings.warn("first line\nsecond", ConvergenceWarning, stacklevel=1)
        warnings.warn("other", RuntimeWarning, stacklevel=1)
        return 7

    with pytest.warns(RuntimeWarning, match="other"):
        assert noted(fit) == (7, ["first line"])


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    rows=st.integers(1, 50),
    columns=st.integers(1, 7),
    offset=st.sampled_from([0.0, 1000.0]),
    seed=st.integers(0, 99),
)
def test_moments(dtype: str, rows: int, columns: int, offset: float, seed: int) -> None:
    X = (np.random.default_rng(seed).normal(size=(rows, columns)) + offset).astype(dtype)
    X[:, 0] = 0.1  # constant, and not exact in any of the types
    found = scaling.moments(X)
    assert np.allclose(found.mean, X.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert np.allclose(found.variance, X.astype(np.float64).var(axis=0), rtol=1e-6, atol=1e-12)
    assert found.variance[0] == 0
    assert found.scale[0] == 1
    assert np.allclose(found.scale**2, np.where(found.variance > 0, found.variance, 1))


def test_moments_over_many_blocks() -> None:
    X = np.random.default_rng(0).normal(5, 2, (3000, 300)).astype(np.float16)  # four blocks
    found = scaling.moments(X)
    assert np.allclose(found.mean, X.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert np.allclose(found.scale, X.std(axis=0, dtype=np.float64), rtol=1e-9)
    X[2999, 7] = np.inf
    with pytest.raises(HeadError, match="inf in row 2999, column 7"):
        scaling.moments(X)


def test_rows_are_copied_only_where_they_change() -> None:
    X = np.ones((5, 3), np.float32)
    assert scaling.standardised(X, None) is X
    assert scaling.standardised(X, scaling.moments(X)) is not X


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 60))
def test_blocks_cover_all_rows_once(rows: int, columns: int, values: int) -> None:
    parts: list[Any] = list(scaling.row_blocks(rows, columns, values))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start <= max(1, values // columns) for part in parts)

"""Support vector machines and nearest neighbours decide as scikit-learn's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from featcache.heads import saving
from featcache.heads.neighbours import KNNHead
from featcache.heads.svm import SVMHead


def _digits(classes: int) -> tuple[Any, ...]:
    X, y = load_digits(n_class=classes, return_X_y=True)
    return X[::3], y[::3], X[1::3], y[1::3]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("gamma", ["scale", "auto", 0.005])
def test_rbf_decides_as_svc(classes: int, gamma: str | float) -> None:
    X, y, test, _ = _digits(classes)
    test = np.concatenate([test, test + np.random.default_rng(0).normal(0, 5, test.shape)])  # some far off
    head = SVMHead(kernel="rbf", C=2.0, gamma=gamma).fit(X, y)
    head = saving.loads(saving.dumps(head))  # type: ignore[assignment]  # from the arrays alone
    scaler = StandardScaler().fit(X)
    Z, Z_test = scaler.transform(X).astype(np.float32), scaler.transform(test)
    reference = SVC(C=2.0, gamma=head.gamma_, break_ties=True).fit(Z, y)
    assert head.gamma_ == pytest.approx(SVC(gamma=gamma).fit(Z, y)._gamma, rel=1e-5)
    assert np.array_equal(head.predict(test), reference.predict(Z_test))
    assert np.allclose(head.decision_function(test), reference.decision_function(Z_test), atol=1e-8)
    plain = SVC(C=2.0, gamma=head.gamma_).fit(Z, y)  # without breaking ties between votes
    assert np.mean(head.predict(test) == plain.predict(Z_test)) > 0.95


def test_gamma_without_standardisation_is_svcs() -> None:
    X, y, test, truth = _digits(4)
    head = SVMHead(kernel="rbf", standardize="no").fit(X, y)
    reference = SVC(C=10.0, break_ties=True).fit(X, y)
    assert head.gamma_ == pytest.approx(reference._gamma)
    assert np.array_equal(head.predict(test), reference.predict(test))
    assert head.score(test, truth) > 0.9


@pytest.mark.parametrize("classes", [2, 10])
def test_linear_is_linear_svc(classes: int) -> None:
    X, y, test, _ = _digits(classes)
    head = SVMHead(C=0.01, tol=1e-5).fit(X, y)
    scaler = StandardScaler().fit(X)
    reference = LinearSVC(C=0.01, tol=1e-6, max_iter=20000, random_state=1).fit(scaler.transform(X), y)
    assert np.allclose(head.coef_, reference.coef_, atol=1e-3)
    Z = scaler.transform(X)
    ours, theirs = (_objective(model, Z, y, 0.01) for model in (head, reference))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert np.mean(head.predict(test) == reference.predict(scaler.transform(test))) > 0.99
    assert head.converged_


def _objective(model: Any, Z: Any, y: Any, C: float) -> float:
    """LinearSVC's objective, summed over the classes."""
    signs = np.where(y[:, None] == (np.unique(y) if len(np.unique(y)) > 2 else [1]), 1, -1)
    short = np.maximum(1 - signs * (Z @ model.coef_.T + model.intercept_), 0)
    return float(C * (short**2).sum() + ((model.coef_**2).sum() + (model.intercept_**2).sum()) / 2)


def test_an_unfinished_solver_is_a_note() -> None:
    X, y, _, _ = _digits(10)
    for kernel in ("linear", "rbf"):
        head = SVMHead(kernel=kernel, max_iter=1, C=100.0, tol=1e-9).fit(X, y)
        assert not head.converged_
        assert head.notes_


def test_probabilities_order_as_the_decision() -> None:
    X, y, test, _ = _digits(10)
    for kernel in ("linear", "rbf"):
        head = SVMHead(kernel=kernel).fit(X, y)
        scores, proba = head.decision_function(test), head.predict_proba(test)
        assert np.array_equal(scores.argsort(axis=1), proba.argsort(axis=1))
        assert np.allclose(proba.sum(axis=1), 1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 80),
    k=st.integers(1, 100),
    metric=st.sampled_from(["cosine", "euclidean"]),
    seed=st.integers(0, 999),
)
def test_knn_votes_as_scikit_learn(rows: int, k: int, metric: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, y, test = rng.normal(size=(rows, 4)), np.arange(rows) % 2 * 3, rng.normal(size=(30, 4))
    head = KNNHead(k=k, metric=metric).fit(X, y)
    reference = KNeighborsClassifier(min(k, rows), metric=metric, algorithm="brute").fit(X, y)
    assert np.allclose(head.predict_proba(test), reference.predict_proba(test))
    assert np.array_equal(head.predict(test), reference.predict(test))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_in_many_blocks(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, test, truth = _digits(10)
    X = X + np.random.default_rng(0).normal(0, 0.1, X.shape)  # no two rows equally far
    head = KNNHead(metric=metric, k=7).fit(X.astype(np.float16), y)
    whole, near = head.predict_proba(test), head.nearest(test)
    monkeypatch.setattr("featcache.heads.scaling.BLOCK", 512 * 3)
    monkeypatch.setattr("featcache.heads.neighbours.row_blocks", lambda n, d, v=512 * 3: _blocks(n, d, v))
    monkeypatch.setattr("featcache.heads.neighbours._QUERIES", 11)
    assert np.array_equal(head.nearest(test), near)
    assert np.array_equal(head.predict_proba(test), whole)
    assert head.score(test, truth) > 0.9


def _blocks(rows: int, columns: int, values: int) -> Any:
    from featcache.heads import scaling

    return scaling.row_blocks(rows, columns, values)


def test_knn_holds_the_table_it_was_given() -> None:
    X, y, _, _ = _digits(3)
    half = X.astype(np.float16)
    assert np.shares_memory(KNNHead().fit(half, y).rows_, half)


def test_a_row_of_zeros_is_as_far_from_all() -> None:
    X = np.array([[1.0, 0], [0, 1], [0, 0], [2, 0]])
    head = KNNHead(k=1).fit(X, [0, 1, 1, 0])
    assert head.predict([[5.0, 0.1], [0.1, 5]]).tolist() == [0, 1]
    assert np.isfinite(head.predict_proba([[0.0, 0]])).all()

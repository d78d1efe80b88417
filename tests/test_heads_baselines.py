"""Trees, forests, boosting, naive Bayes and the dummy decide as scikit-learn's do, from plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from featcache.errors import HeadError
from featcache.heads import saving
from featcache.heads.base import Head
from featcache.heads.baselines import DummyHead, NaiveBayesHead
from featcache.heads.forests import BoostingHead, ForestHead, TreeHead
from featcache.heads.packing import arrays_of, meta_of, pack

PAIRS: list[tuple[Head, Any, float]] = [
    (TreeHead(), DecisionTreeClassifier(random_state=0), 1e-7),
    (
        TreeHead(criterion="entropy", max_depth=4),
        DecisionTreeClassifier(criterion="entropy", max_depth=4, random_state=0),
        1e-7,
    ),
    (TreeHead(min_samples_leaf=9, seed=3), DecisionTreeClassifier(min_samples_leaf=9, random_state=3), 1e-7),
    (ForestHead(n_estimators=20), RandomForestClassifier(20, random_state=0), 1e-6),
    (
        ForestHead(n_estimators=7, max_features=0.5, max_depth=5, seed=2),
        RandomForestClassifier(7, max_features=0.5, max_depth=5, random_state=2),
        1e-6,
    ),
    (
        ForestHead(n_estimators=3, max_features="all"),
        RandomForestClassifier(3, max_features=None, random_state=0),
        1e-6,
    ),
    (BoostingHead(n_estimators=15), HistGradientBoostingClassifier(max_iter=15, random_state=0), 1e-5),
    (
        BoostingHead(n_estimators=9, lr=0.3, max_leaf_nodes=6, max_depth=3),
        HistGradientBoostingClassifier(
            max_iter=9, learning_rate=0.3, max_leaf_nodes=6, max_depth=3, random_state=0
        ),
        1e-5,
    ),
    (NaiveBayesHead(), GaussianNB(), 1e-4),
    (DummyHead(), DummyClassifier(), 1e-6),
]


def _digits(classes: int) -> tuple[Any, ...]:
    X, y = load_digits(n_class=classes, return_X_y=True)
    return X[::3].astype(np.float32), y[::3], X[1::3].astype(np.float32), y[1::3]


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("head", "reference", "atol"), PAIRS, ids=lambda value: type(value).__name__)
def test_probabilities_are_scikit_learn_s(head: Head, reference: Any, atol: float, classes: int) -> None:
    X, y, test, _ = _digits(classes)
    head.fit(X, y)
    loaded = saving.loads(saving.dumps(head))  # from the arrays alone
    expected = reference.fit(X, y).predict_proba(test)
    np.testing.assert_allclose(loaded.predict_proba(test), expected, atol=atol)
    assert np.mean(loaded.predict(test) == reference.predict(test)) > 0.995


def test_rows_on_a_threshold_go_left_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 6, (400, 5)).astype(np.float32)  # midpoints like .5 are thresholds, and values too
    y = (X[:, 0] + X[:, 1] > 5).astype(int)
    test = rng.integers(0, 12, (3000, 5)).astype(np.float32) / 2
    for head, reference in (
        (TreeHead(), DecisionTreeClassifier(random_state=0)),
        (BoostingHead(n_estimators=5), HistGradientBoostingClassifier(max_iter=5, random_state=0)),
    ):
        assert np.array_equal(head.fit(X, y).predict(test), reference.fit(X, y).predict(test))


def test_boosting_stops_by_validation_and_keeps_the_best_rounds() -> None:
    X, y, X_val, y_val = _digits(10)
    head = BoostingHead(n_estimators=60, lr=0.8, patience=3, min_samples_leaf=5).fit(X, y, X_val, y_val)
    losses = []
    for rounds in range(1, 61):
        alone = BoostingHead(n_estimators=rounds, lr=0.8, patience=None, min_samples_leaf=5).fit(X, y)
        proba = alone.predict_proba(X_val)[np.arange(len(y_val)), y_val]
        losses.append(-np.log(np.clip(proba, 1e-12, 1)).mean())
        if rounds >= head.n_iter_ + 3:
            break
    assert head.n_iter_ == int(np.argmin(losses)) + 1
    wanted = BoostingHead(n_estimators=head.n_iter_, lr=0.8, patience=None, min_samples_leaf=5).fit(X, y)
    assert np.array_equal(head.predict_proba(X_val), wanted.predict_proba(X_val))


@pytest.mark.parametrize("head", [TreeHead(), ForestHead(n_estimators=4), BoostingHead(n_estimators=3)])
def test_nodes_that_lead_astray_are_refused(head: Head) -> None:
    X, y, _, _ = _digits(3)
    data = saving.dumps(head.fit(X, y))
    inner = int(np.flatnonzero(head.column_ >= 0)[0])  # type: ignore[attr-defined]
    wrong = {
        "column_": (inner, X.shape[1]),
        "left_": (inner, inner),  # round in circles
        "right_": (inner, len(head.column_)),  # type: ignore[attr-defined]
        "roots_": (0, 1),
        "value_": (0, np.nan),
    }
    for name, (at, value) in wrong.items():
        arrays = {key: array.copy() for key, array in arrays_of(data).items()}
        arrays[name][at] = value
        with pytest.raises(HeadError, match="damaged"):
            saving.loads(pack(arrays, meta_of(data, saving.FORMAT)))


def test_naive_bayes_stands_a_large_mean_and_constant_columns() -> None:
    X, y, test, truth = _digits(10)
    shifted = NaiveBayesHead().fit(X.astype(np.float64) + 1e4, y)
    plain = NaiveBayesHead().fit(X.astype(np.float64), y)
    assert (X.std(axis=0) == 0).any()
    assert plain.score(test, truth) > 0.75
    agree = shifted.predict(test.astype(np.float64) + 1e4) == plain.predict(test.astype(np.float64))
    assert agree.mean() > 0.99


def test_the_dummy_says_how_often_a_class_is() -> None:
    X, y = np.zeros((10, 2), np.float32), np.array([0] * 7 + [1] * 3)
    head = DummyHead().fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X[:1]), [[0.7, 0.3]], rtol=1e-6)
    assert head.score(X, y) == 0.7

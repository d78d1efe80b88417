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

from featcache.errors import HeadError
from featcache.heads import saving
from featcache.heads.kernels import gaussian
from featcache.heads.neighbours import KNNHead
from featcache.heads.nystrom import nystrom
from featcache.heads.scaling import row_blocks
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


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardize", ["yes", "no"])
def test_all_rows_as_landmarks_span_the_kernel(classes: int, standardize: str) -> None:
    """Then the features' products are the kernel's values, and the linear problem is the kernel's own."""
    X, y, test, truth = _digits(classes)
    head = SVMHead(kernel="rbf-approx", landmarks=10**6, C=0.5, tol=1e-6, standardize=standardize).fit(X, y)
    assert len(head.landmarks_) == len(X)
    Z, Z_test = (head._standardised_block(rows, np.float64) for rows in (X, test))
    exact = gaussian(Z, Z, head.gamma_)
    signs = np.where(y[:, None] == (np.arange(classes) if classes > 2 else [1]), 1.0, -1.0)
    near = nystrom(X, head._moments(head._task(X, y, None, None)), head.gamma_, len(X), 0)
    features = near.features(X, head._moments(head._task(X, y, None, None)))
    assert np.allclose(features @ features.T, exact, atol=1e-3)
    # min over a, b of 1/2 a'Ka + b²/2 + C sum max(0, 1 - t (Ka + b))², solved by Newton's method.
    K, scores = np.pad(exact, ((0, 0), (0, 1)), constant_values=1.0), []
    P = np.pad(exact, ((0, 1), (0, 1)))
    P[-1, -1] = 1
    for t in signs.T:
        a = np.zeros(len(K[0]))
        for _ in range(25):
            active = t * (K @ a) < 1
            A = K[active]
            a = np.linalg.solve(P + 2 * 0.5 * A.T @ A + 1e-9 * np.eye(len(P)), 2 * 0.5 * A.T @ t[active])
        scores.append(gaussian(Z_test, Z, head.gamma_) @ a[:-1] + a[-1])
    expected = np.stack(scores, axis=1)
    found = head._scores(test)
    found = found if classes > 2 else found[:, 1:] - found[:, :1]
    assert np.allclose(found, expected, atol=0.02)
    assert head.score(test, truth) > 0.9


def test_landmarks_come_close_to_the_exact_kernel() -> None:
    X, y, test, truth = _digits(10)
    exact = SVMHead(kernel="rbf").fit(X, y).score(test, truth)
    found = [SVMHead(kernel="rbf-approx", landmarks=m).fit(X, y).score(test, truth) for m in (10, 50, 300)]
    assert found[0] < found[1] < found[2] and found[2] > exact - 0.02
    one, other = (SVMHead(kernel="rbf-approx", landmarks=50, seed=seed).fit(X, y) for seed in (0, 1))
    assert not np.array_equal(one.landmarks_, other.landmarks_)


def test_landmarks_read_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, test, _ = _digits(3)
    options = {"kernel": "rbf-approx", "landmarks": 30, "tol": 1e-6}
    whole = SVMHead(**options).fit(X, y)._scores(test)
    monkeypatch.setattr("featcache.heads.nystrom.row_blocks", lambda n, d: row_blocks(n, d, 1000))
    assert np.allclose(SVMHead(**options).fit(X, y)._scores(test), whole, atol=2e-3)


def test_an_exact_kernel_on_many_rows_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _, _ = _digits(10)
    head = SVMHead(kernel="rbf")

    def some(at: Any) -> Any:
        return X[at], y[at]

    assert head.forewarning(X.shape, some) == ""
    monkeypatch.setattr("featcache.heads.svm._MANY", 500)
    text = head.forewarning(X.shape, some)
    assert f"rbf kernel on {len(X)} rows takes" in text and "--kernel rbf-approx" in text
    assert not hasattr(head, "classes_")
    for kernel in ("linear", "rbf-approx"):
        assert SVMHead(kernel=kernel).forewarning(X.shape, some) == ""


def test_an_unfinished_solver_is_a_note() -> None:
    X, y, _, _ = _digits(10)
    for kernel in ("linear", "rbf", "rbf-approx"):
        head = SVMHead(kernel=kernel, max_iter=1, C=100.0, tol=1e-9).fit(X, y)
        assert not head.converged_
        assert head.notes_


def test_probabilities_order_as_the_decision() -> None:
    X, y, test, _ = _digits(10)
    for kernel in ("linear", "rbf", "rbf-approx"):
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
    monkeypatch.setattr("featcache.heads.scoring.BLOCK", 64 * 11)
    monkeypatch.setattr(KNNHead, "ROWS_AT_ONCE", 11)
    monkeypatch.setattr("featcache.heads.nearest._ROWS", {"cpu": (3, 3), "cuda": (3, 3)})
    assert np.array_equal(head.nearest(test), near)
    assert np.array_equal(head.predict_proba(test), whole)
    assert head.score(test, truth) > 0.9


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("standardize", ["yes", "no"])
def test_of_equally_near_rows_the_earlier_comes_first(metric: str, standardize: str) -> None:
    X, y, _, _ = _digits(10)
    twice = np.concatenate([X, X, X]).astype(np.float16)
    head = KNNHead(k=4, metric=metric, standardize=standardize).fit(twice, np.tile(y, 3))
    near = head.nearest(head._standardised_block(X[:50], np.float32))
    assert np.array_equal(near[:, :3], np.arange(50)[:, None] + [0, len(X), 2 * len(X)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_heads_of_several_k_look_for_neighbours_once(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.heads.batched import check_data
    from featcache.heads.nearest import Nearest
    from featcache.heads.scoring import probabilities_of
    from featcache.heads.together import fit_together, key

    X, y, test, _ = _digits(10)
    heads = [KNNHead(k=k, metric=metric) for k in (20, 1, 5, 5, 10**6)]
    assert {key(head) for head in heads} == {key(heads[0])} != {key(KNNHead(standardize="yes"))}
    (finished,) = fit_together(heads, check_data(X, y))
    assert finished == [(number, None) for number in range(5)]
    asked: list[int] = []
    find = Nearest.find
    monkeypatch.setattr(Nearest, "find", lambda self, q, k: asked.append(k) or find(self, q, k))
    together = probabilities_of(heads, test)
    assert asked == [len(X)]
    for head, own in zip(heads, together, strict=True):
        alone = KNNHead(k=head.k, metric=metric).fit(X, y)
        assert np.array_equal(own, alone.predict_proba(test))
    # Heads that do not share their rows answer for themselves.
    other = KNNHead(k=3, metric=metric).fit(X[:100], y[:100])
    one, two = probabilities_of([heads[0], other], test)
    assert np.array_equal(one, together[0]) and np.array_equal(two, other.predict_proba(test))


def test_knn_holds_the_table_it_was_given() -> None:
    X, y, _, _ = _digits(3)
    half = X.astype(np.float16)
    assert np.shares_memory(KNNHead().fit(half, y).rows_, half)


def test_a_row_of_zeros_is_as_far_from_all() -> None:
    X = np.array([[1.0, 0], [0, 1], [0, 0], [2, 0]])
    head = KNNHead(k=1).fit(X, [0, 1, 1, 0])
    assert head.predict([[5.0, 0.1], [0.1, 5]]).tolist() == [0, 1]
    assert np.isfinite(head.predict_proba([[0.0, 0]])).all()


def test_intelex_finds_what_svc_finds() -> None:
    pytest.importorskip("sklearnex", reason="scikit-learn-intelex is not installed: featcache[intelex]")
    X, y, test, _ = _digits(3)
    fast, reference = (SVMHead(kernel="rbf", solver=solver).fit(X, y) for solver in ("intelex", "sklearn"))
    assert (fast.predict(test) == reference.predict(test)).all()
    assert np.allclose(fast.decision_function(test), reference.decision_function(test), atol=1e-2)
    assert fast.n_support_.sum() == len(fast.support_vectors_)


def test_the_fast_solver_of_the_exact_kernel_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadError, match="solver intelex is for the rbf kernel, not for linear"):
        SVMHead(solver="intelex").check_options()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HeadError, match=r"not installed.*\n?.*pip install 'featcache\[intelex\]'"):
        SVMHead(kernel="rbf", solver="intelex").check_options()

"""Heads that differ in their penalty alone are solved together, and come out as they do alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from featcache.errors import HeadError
from featcache.heads import saving
from featcache.heads.base import Head
from featcache.heads.batched import EpochOfMany, check_data
from featcache.heads.catalogue import create
from featcache.heads.linear import Problem, objective
from featcache.heads.paths import bytes_of, fit_path, key

PENALTIES = {
    "logreg": ("C", [1e-4, 0.01, 1.0]),
    "svm": ("C", [1e-4, None, 1.0]),
    "ridge": ("alpha", [0.1, 1.0, 900.0]),
}


def digits() -> tuple[Any, ...]:
    X, y = load_digits(return_X_y=True)
    names = np.array([f"digit {c}" for c in range(10)])[y]
    return X.astype(np.float16)[:1200], names[:1200], X.astype(np.float16)[1200:], names[1200:]


def heads_of(kind: str, **more: Any) -> list[Head]:
    name, values = PENALTIES[kind]
    return [create(kind, **{name: value, **more}) for value in values]


def reached(head: Any, X: Any, y: Any) -> float:
    """Return the objective of a head, in float64."""
    data = check_data(X, y)
    columns = data.task.columns if head.standardizes else None
    problem = Problem(head.KIND, data.task, columns, len(data.classes), torch.device("cpu"))
    return objective(problem, head.C or 0.01, head.coef_, head.intercept_)


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("standardize", ["yes", "no"])
def test_each_is_the_head_fitted_alone(kind: str, standardize: str) -> None:
    X, y, X_val, y_val = digits()
    more = {} if kind == "ridge" else {"tol": 1e-8}
    together = heads_of(kind, standardize=standardize, **more)
    done = list(fit_path(together, check_data(X, y, X_val, y_val)))
    assert sorted(number for part in done for number, error in part if error is None) == [0, 1, 2]
    for head, alone in zip(together, heads_of(kind, standardize=standardize, **more), strict=True):
        alone.fit(X, y, X_val, y_val)
        if kind == "ridge":
            assert np.array_equal(head.coef_, alone.coef_) and np.array_equal(
                head.intercept_, alone.intercept_
            )
        else:
            assert reached(head, X, y) == pytest.approx(reached(alone, X, y), rel=1e-7)
        assert (head.predict(X_val) == alone.predict(X_val)).mean() >= 0.999
        assert set(vars(head)) == set(vars(alone))
        assert head.notes_ == alone.notes_
        assert head.fit_seconds_ > 0
        loaded = saving.loads(saving.dumps(head))
        assert np.array_equal(loaded.predict_proba(X_val), head.predict_proba(X_val))


def test_a_pass_is_reported_with_how_many_are_on_their_way() -> None:
    X, y, *_ = digits()
    seen: list[EpochOfMany] = []
    heads = heads_of("logreg")
    list(fit_path(heads, check_data(X, y), seen.append))
    assert [report.epoch for report in seen] == list(range(1, len(seen) + 1))
    assert seen[0].alive == 3 and seen[-1].alive <= 3
    assert len(seen) >= max(head.n_iter_ for head in heads)


def test_what_may_be_solved_together() -> None:
    assert key(create("logreg", C=1.0)) == key(create("logreg", C=7.0))
    assert key(create("ridge", alpha=1.0)) == key(create("ridge", alpha=7.0))
    assert key(create("svm", C=1.0)) == key(create("svm"))
    assert key(create("logreg", tol=1e-5)) != key(create("logreg"))
    assert key(create("logreg")) != key(create("svm"))
    for alone in ("linear", "mlp", "knn"):
        assert key(create(alone)) is None
    assert key(create("svm", kernel="rbf")) is None
    assert key(create("logreg", solver="sklearn")) is None
    with pytest.raises(HeadError, match="C of head 'logreg'"):
        key(type(create("logreg"))(C=-1.0))


def test_others_are_refused() -> None:
    X, y, *_ = digits()
    for heads in ([create("logreg"), create("logreg", tol=1e-6)], [create("mlp"), create("mlp")], []):
        with pytest.raises(HeadError, match="differ in their penalty"):
            list(fit_path(heads, check_data(X, y)))


def test_a_failure_leaves_the_others_alone() -> None:
    X = np.repeat(np.array([[1e6], [-1e6]]), 40, axis=1) * np.arange(1, 41)
    X, y = np.repeat(X, 25, axis=0), np.arange(50) % 2
    heads = [create("ridge", alpha=alpha, standardize="no") for alpha in (1e-30, 1e9)]
    [done] = fit_path(heads, check_data(X, y))
    assert isinstance(done[0][1], HeadError) and "alpha=1e-30" in str(done[0][1])
    assert done[1][1] is None and not hasattr(heads[0], "fit_seconds_")
    assert np.array_equal(heads[1].coef_, create("ridge", alpha=1e9, standardize="no").fit(X, y).coef_)


def test_an_unfinished_one_says_so_and_the_others_not() -> None:
    X, y, *_ = digits()
    heads = [create("logreg", C=C, max_iter=12) for C in (1e-7, 100.0)]
    list(fit_path(heads, check_data(X, y)))
    assert heads[0].converged_ and heads[0].notes_ == []
    assert not heads[1].converged_ and "did not converge" in heads[1].notes_[0]


def test_memory_grows_with_columns_and_classes() -> None:
    head = create("logreg")
    assert bytes_of(head, 100, 2000, 10) > 10 * bytes_of(head, 100, 200, 5)
    assert bytes_of(head, 10**6, 10, 10) > bytes_of(head, 10**5, 10, 10)
    assert bytes_of(head, 100, 200, 2) < bytes_of(head, 100, 200, 3)

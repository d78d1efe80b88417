"""The metrics are scikit-learn's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as theirs
from hypothesis import given
from hypothesis import strategies as st

from featcache import metrics
from featcache.errors import OptionError


@st.composite
def problems(draw: st.DrawFn, ties: bool = True) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, c = draw(st.integers(1, 60)), draw(st.integers(2, 8))
    scores = (
        rng.integers(0, 4, (n, c)) + 0.5 if ties and draw(st.booleans()) else rng.random((n, c)) ** 3 + 1e-9
    )
    present = draw(st.integers(1, c))  # classes from `present` on do not occur in y
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return rng.integers(0, present, n), (scores / scores.sum(axis=1, keepdims=True)).astype(dtype)


@given(problems())
def test_confusion_precision_recall_f1(problem: Any) -> None:
    y, P = problem
    c, predicted = P.shape[1], P.argmax(axis=1)
    confusion = metrics.confusion_matrix(y, P)
    assert np.array_equal(confusion, theirs.confusion_matrix(y, predicted, labels=range(c)))
    assert metrics.accuracy(y, P) == pytest.approx(theirs.accuracy_score(y, predicted))
    scores = metrics.precision_recall_f1(confusion)
    expected = theirs.precision_recall_fscore_support(y, predicted, labels=range(c), zero_division=0)
    for ours, other in zip(
        (scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True
    ):
        assert np.allclose(ours, other)
    rows = metrics.per_class(y, P, [f"class {i}" for i in range(c)])
    assert [row["class"] for row in rows] == [f"class {i}" for i in range(c)]
    assert np.allclose([row["f1"] for row in rows], expected[2])
    assert [row["support"] for row in rows] == expected[3].tolist()


@given(problems(ties=False), st.integers(1, 10))
def test_top_k(problem: Any, k: int) -> None:
    y, P = problem
    c = P.shape[1]
    expected = np.mean([label in row for label, row in zip(y, np.argsort(-P, axis=1)[:, :k], strict=True)])
    assert metrics.top_k(y, P, k) == pytest.approx(expected)
    if c > 2 and k < c:
        assert metrics.top_k(y, P, k) == pytest.approx(
            theirs.top_k_accuracy_score(y, P, k=k, labels=range(c))
        )


@given(problems())
def test_top_1_is_the_accuracy_of_argmax_even_with_ties(problem: Any) -> None:
    y, P = problem
    assert metrics.top_k(y, P, 1) == metrics.accuracy(y, P)
    assert metrics.top_k(y, P, P.shape[1]) == 1


def test_top_k_over_many_blocks() -> None:
    rng = np.random.default_rng(0)
    y, P = rng.integers(0, 1000, 3000), rng.random((3000, 1000))  # three blocks
    assert metrics.top_k(y, P) == pytest.approx(theirs.top_k_accuracy_score(y, P, k=5, labels=range(1000)))


@given(problems())
def test_log_loss(problem: Any) -> None:
    y, P = problem
    expected = theirs.log_loss(y, P, labels=range(P.shape[1]))
    assert metrics.log_loss(y, P) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_log_loss_of_certain_errors_is_finite() -> None:
    P = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert metrics.log_loss([0, 1], P) == pytest.approx(theirs.log_loss([0, 1], P))
    assert metrics.log_loss([0, 1], P) == pytest.approx(-np.log(np.finfo(np.float64).eps))


def _ece(y: Any, P: Any, bins: int) -> float:
    """Guo et al. 2017, equations 2 and 3, bin by bin."""
    confidence, correct = P.max(axis=1).astype(np.float64), P.argmax(axis=1) == y
    total = 0.0
    for m in range(bins):
        edges = np.linspace(0, 1, bins + 1)
        inside = (confidence > edges[m]) & (confidence <= edges[m + 1])
        if inside.any():
            total += inside.sum() / len(y) * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@given(problems(), st.integers(1, 20))
def test_expected_calibration_error(problem: Any, bins: int) -> None:
    y, P = problem
    assert metrics.expected_calibration_error(y, P, bins) == pytest.approx(_ece(y, P, bins), abs=1e-9)


def test_calibration_extremes() -> None:
    certain = np.eye(4)[[0, 1, 2, 3]]
    assert metrics.expected_calibration_error([0, 1, 2, 3], certain) == 0
    assert metrics.expected_calibration_error([1, 2, 3, 0], certain) == 1


@given(problems())
def test_summary(problem: Any) -> None:
    y, P = problem
    classes = [f"class {i}" for i in range(P.shape[1])]
    found = metrics.summary(y, P, classes)
    predicted = P.argmax(axis=1)
    p, r, f, _ = theirs.precision_recall_fscore_support(y, predicted, average="macro", zero_division=0)
    assert (found["macro_precision"], found["macro_recall"], found["macro_f1"]) == pytest.approx((p, r, f))
    assert found["n"] == len(y)
    assert found["accuracy"] == pytest.approx(metrics.accuracy(y, P))
    assert found["top5"] == metrics.top_k(y, P, 5)
    assert found["log_loss"] == metrics.log_loss(y, P)
    assert found["ece"] == metrics.expected_calibration_error(y, P)
    there = [row for row in metrics.per_class(y, P, classes) if row["support"]]
    worst = min(there, key=lambda row: row["f1"])
    assert found["worst_class"] == {key: worst[key] for key in ("class", "f1", "precision", "recall")}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_half_precision_is_read_as_single() -> None:
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(5), 50).astype(np.float16)
    y = rng.integers(0, 5, 50)
    assert metrics.summary(y, P, list("abcde")) == metrics.summary(y, P.astype(np.float32), list("abcde"))


@pytest.mark.parametrize(
    ("y", "P", "says"),
    [
        ([0, 1], np.ones((3, 2)), "Expected y"),
        ([], np.ones((0, 2)), "none empty"),
        ([0], np.ones(2), "Expected y"),
        ([2], np.ones((1, 2)), "indices from 0 to 1"),
        ([-1], np.ones((1, 2)), "indices from 0 to 1"),
        ([0.0], np.ones((1, 2)), "indices"),
        ([0], np.array([[np.nan, 1]]), "finite"),
    ],
)
def test_refusals(y: Any, P: Any, says: str) -> None:
    for measure in (metrics.accuracy, metrics.top_k, metrics.log_loss, metrics.confusion_matrix):
        with pytest.raises(OptionError, match=says):
            measure(np.array(y), P)  # type: ignore[operator]


def test_names_must_fit() -> None:
    with pytest.raises(OptionError, match="2 columns of P, got 3"):
        metrics.summary([0], np.array([[0.5, 0.5]]), ["a", "b", "c"])
    with pytest.raises(OptionError, match="k must be"):
        metrics.top_k([0], np.array([[0.5, 0.5]]), 0)
    with pytest.raises(OptionError, match="bins must be"):
        metrics.expected_calibration_error([0], np.array([[0.5, 0.5]]), 0)

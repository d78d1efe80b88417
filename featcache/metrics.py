"""Measures of a classifier, from the true classes y (N,) and the probabilities P (N, C).

Everything agrees with scikit-learn (zero_division=0) where scikit-learn has the measure; ties between
probabilities go to the class with the lower index, so that top-1 is the accuracy of argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featcache.errors import OptionError

Floats = NDArray[np.float64]
_BLOCK = 1 << 20  # probabilities looked at together, so that no second (N, C) array is made


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall, F1 and support of every class, each (C,)."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: NDArray[np.int64]


def accuracy(y: ArrayLike, P: ArrayLike) -> float:
    """Return the share of rows whose likeliest class is the true one.

    Raises:
        OptionError: y (N,) and P (N, C) do not fit each other, or there are no rows.
    """
    true, probabilities = _checked(y, P)
    return float(np.mean(probabilities.argmax(axis=1) == true))


def top_k(y: ArrayLike, P: ArrayLike, k: int = 5) -> float:
    """Return the share of rows whose true class is among the k likeliest (k is clipped to C).

    Raises:
        OptionError: y and P do not fit each other, or k < 1.
    """
    true, probabilities = _checked(y, P)
    if k < 1:
        raise OptionError(f"k must be at least 1, got {k}.")
    hits = 0
    for rows in _blocks(probabilities):
        part, at = probabilities[rows], true[rows, None]
        own = np.take_along_axis(part, at, axis=1)
        before = np.arange(part.shape[1]) < at
        hits += int(np.count_nonzero(((part > own) | ((part == own) & before)).sum(axis=1) < k))
    return hits / len(true)


def log_loss(y: ArrayLike, P: ArrayLike) -> float:
    """Return the mean of -ln p(true class), in nats; p is clipped to [eps, 1 - eps] of P's dtype.

    Raises:
        OptionError: y and P do not fit each other.
    """
    true, probabilities = _checked(y, P)
    eps = float(np.finfo(probabilities.dtype).eps)
    own = np.take_along_axis(probabilities, true[:, None], axis=1)[:, 0].astype(np.float64)
    return float(-np.mean(np.log(np.clip(own, eps, 1 - eps))))


def expected_calibration_error(y: ArrayLike, P: ArrayLike, bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy, 0..1, over equal-width bins weighted by rows.

    A confidence on an edge belongs to the bin below it. Source: Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017, section 2.

    Raises:
        OptionError: y and P do not fit each other, or bins < 1.
    """
    true, probabilities = _checked(y, P)
    if bins < 1:
        raise OptionError(f"bins must be at least 1, got {bins}.")
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == true
    edges = np.linspace(0.0, 1.0, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    surplus = np.bincount(which, weights=confidence - correct, minlength=bins)
    return float(np.abs(surplus).sum() / len(true))


def confusion_matrix(y: ArrayLike, P: ArrayLike) -> NDArray[np.int64]:
    """Return the counts (C, C): rows are the true classes, columns the likeliest ones.

    Raises:
        OptionError: y and P do not fit each other.
    """
    true, probabilities = _checked(y, P)
    return _confusion(true, probabilities)


def precision_recall_f1(confusion: NDArray[np.int64]) -> ClassScores:
    """Return each class's precision, recall and F1 from a confusion matrix (C, C); 0 where undefined."""
    hits = np.diagonal(confusion).astype(np.float64)
    predicted, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return ClassScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, predicted + support),
        support=support,
    )


def per_class(y: ArrayLike, P: ArrayLike, classes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for every class: class, precision, recall, f1, support.

    Raises:
        OptionError: y and P do not fit each other, or `classes` does not name the C columns of P.
    """
    true, probabilities = _checked(y, P)
    return _class_rows(precision_recall_f1(_confusion(true, probabilities)), classes)


def summary(y: ArrayLike, P: ArrayLike, classes: Sequence[Any]) -> dict[str, Any]:
    """Return the measures a report shows, as plain JSON values (for classes that are).

    Keys: n, accuracy, top5, macro_precision, macro_recall, macro_f1, log_loss, ece, and worst_class with
    class, f1, precision and recall: the class with the lowest F1 among those that y holds. The macro means
    are, as scikit-learn's, over the classes that occur in y or among the likeliest.

    Raises:
        OptionError: y and P do not fit each other, or `classes` does not name the C columns of P.
    """
    true, probabilities = _checked(y, P)
    confusion = _confusion(true, probabilities)
    scores = precision_recall_f1(confusion)
    occurs = (confusion.sum(axis=0) + scores.support) > 0
    worst = _class_rows(scores, classes)[int(np.where(scores.support > 0, scores.f1, np.inf).argmin())]
    return {
        "n": len(true),
        "accuracy": float(np.trace(confusion) / len(true)),
        "top5": top_k(true, probabilities, 5),
        "macro_precision": float(scores.precision[occurs].mean()),
        "macro_recall": float(scores.recall[occurs].mean()),
        "macro_f1": float(scores.f1[occurs].mean()),
        "log_loss": log_loss(true, probabilities),
        "ece": expected_calibration_error(true, probabilities),
        "worst_class": {key: worst[key] for key in ("class", "f1", "precision", "recall")},
    }


def _confusion(true: NDArray[np.int64], P: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    c = P.shape[1]
    counts = np.bincount(true * c + P.argmax(axis=1), minlength=c * c)
    return counts.reshape(c, c).astype(np.int64)


def _class_rows(scores: ClassScores, classes: Sequence[Any]) -> list[dict[str, Any]]:
    if len(classes) != len(scores.f1):
        raise OptionError(f"classes must name the {len(scores.f1)} columns of P, got {len(classes)} names.")
    return [
        {
            "class": name,
            "precision": float(scores.precision[c]),
            "recall": float(scores.recall[c]),
            "f1": float(scores.f1[c]),
            "support": int(scores.support[c]),
        }
        for c, name in enumerate(classes)
    ]


def _checked(y: ArrayLike, P: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
    true, probabilities = np.asarray(y), np.asarray(P)
    if probabilities.ndim != 2 or true.shape != probabilities.shape[:1] or not probabilities.size:
        raise OptionError(
            f"Expected y (N,) and P (N, C), none empty; got {true.shape} and {probabilities.shape}."
        )
    if true.dtype.kind not in "iu" or true.min() < 0 or true.max() >= probabilities.shape[1]:
        raise OptionError(f"y must hold class indices from 0 to {probabilities.shape[1] - 1}, got others.")
    if probabilities.dtype not in (np.float32, np.float64):
        probabilities = probabilities.astype(np.float32 if probabilities.dtype == np.float16 else np.float64)
    if not all(np.isfinite(probabilities[rows]).all() for rows in _blocks(probabilities)):
        raise OptionError("P must hold finite probabilities, got NaN or infinity.")
    return true.astype(np.int64, copy=False), probabilities


def _blocks(P: NDArray[np.floating[Any]]) -> list[slice]:
    step = max(1, _BLOCK // P.shape[1])
    return [slice(start, start + step) for start in range(0, len(P), step)]


def _ratio(part: Floats, whole: NDArray[Any]) -> Floats:
    out: Floats = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return out

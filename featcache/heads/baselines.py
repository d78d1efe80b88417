"""What every head has to beat: Gaussian naive Bayes, and the frequencies of the classes alone."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import STANDARDIZE, ArraySpec, Head, ScoredHead, Task
from featcache.heads.scaling import Matrix, moments

_SMOOTHING = 1e-9  # of the largest variance of a column, added to all: scikit-learn's var_smoothing


class NaiveBayesHead(ScoredHead):
    """Gaussian naive Bayes, the model of scikit-learn's GaussianNB: columns independent within a class.

    Rows are read class by class and never copied as a whole. Fitted: `theta_` and `var_` (C, D), each class's
    column means and smoothed variances, and `prior_` (C,), the classes' shares of the training rows.
    """

    KIND: ClassVar = "naive-bayes"
    STANDARDIZES: ClassVar = False
    OPTIONS: ClassVar = {"standardize": STANDARDIZE}

    theta_: NDArray[np.float64]
    var_: NDArray[np.float64]
    prior_: NDArray[np.float64]

    def __init__(self, standardize: str = "auto") -> None:
        self.standardize = standardize

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what means, variances and shares must be."""
        classes = len(self.classes_)
        table = ArraySpec((classes, self.n_features_in_))
        return {"theta_": table, "var_": table, "prior_": ArraySpec((classes,))}

    def damage(self) -> str:
        """Return a word on variances and shares that are not above 0."""
        return (
            "" if (self.var_ > 0).all() and (self.prior_ > 0).all() else "a variance or share is not above 0"
        )

    def _learn(self, task: Task) -> None:
        columns = self._moments(task)
        classes = range(len(self.classes_))
        parts = [moments(task.X[task.y == code]) for code in classes]
        theta, var = np.stack([part.mean for part in parts]), np.stack([part.variance for part in parts])
        overall = task.columns.variance
        if columns is not None:
            theta, var = (theta - columns.mean) / columns.scale, var / columns.scale**2
            overall = overall / columns.scale**2
        smoothing = _SMOOTHING * float(overall.max())
        self.theta_, self.var_ = theta, var + (smoothing if smoothing > 0 else _SMOOTHING)
        self.prior_ = np.bincount(task.y, minlength=len(self.classes_)) / len(task.y)

    def _block_scores(self, block: Matrix) -> Matrix:
        # Relative to the classes' middle, so that the squares lose no digits to a large common mean.
        middle = self.prior_ @ self.theta_
        rows, theta, weight = block.astype(np.float64) - middle, self.theta_ - middle, 1 / self.var_
        distance = rows**2 @ weight.T - 2 * (rows @ (theta * weight).T) + (theta**2 * weight).sum(axis=1)
        log = np.log(self.prior_) - 0.5 * (distance + np.log(2 * np.pi * self.var_).sum(axis=1))
        log -= log.max(axis=1, keepdims=True)  # differences alone matter, and float32 holds few digits
        scores: Matrix = log.astype(block.dtype, copy=False)
        return scores


class DummyHead(Head):
    """Looks at no feature: every row gets the classes' shares of the training rows as probabilities.

    What a head gains over this is what it has learned from the features. Fitted: `prior_` (C,).
    """

    KIND: ClassVar = "dummy"
    STANDARDIZES: ClassVar = False
    OPTIONS: ClassVar = {"standardize": STANDARDIZE}

    prior_: NDArray[np.float64]

    def __init__(self, standardize: str = "auto") -> None:
        self.standardize = standardize

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what the shares must be."""
        return {"prior_": ArraySpec((len(self.classes_),))}

    def damage(self) -> str:
        """Return a word on shares that are not above 0."""
        return "" if (self.prior_ > 0).all() else "a class's share is not above 0"

    def _learn(self, task: Task) -> None:
        self.prior_ = np.bincount(task.y, minlength=len(self.classes_)) / len(task.y)

    def _block_scores(self, block: Matrix) -> Matrix:
        return np.tile(np.log(self.prior_), (len(block), 1)).astype(block.dtype, copy=False)

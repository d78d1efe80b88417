"""What every head is: a scikit-learn classifier on rows of features that can say what it needs and holds."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featcache.errors import HeadError
from featcache.heads.calibration import Calibration, best_temperature, tempered
from featcache.heads.checking import validated
from featcache.heads.labels import UNKNOWN, check_known, encoded, strangers_note
from featcache.heads.options import Option, check, choice
from featcache.heads.scaling import Matrix, Moments, check_finite, moments, row_blocks, standardised
from featcache.heads.scoring import probabilities_of as probabilities_of
from featcache.heads.scoring import scores_of
from featcache.metrics import expected_calibration_error

Codes = NDArray[np.int64]
STANDARDIZE = choice("standardise columns with the training rows' mean and deviation", "auto", "yes", "no")


@dataclass(frozen=True)
class ArraySpec:
    """The shape and the possible types of a fitted array.

    A size is a number, or a letter that stands for the same number wherever it occurs.
    """

    shape: tuple[int | str, ...]
    dtypes: tuple[str, ...] = ("float64",)


@dataclass(frozen=True)
class Task:
    """What a head is fitted to: rows (N, D), class codes (N,), and the same for validation where given.

    A validation row's code may be `UNKNOWN`: it counts as an error in an accuracy and not at all in a loss.
    There is at least one that is not. `notes` are what a user should know about the data. The rows of a
    head that is BLOCKWISE may be a `Selection`.
    """

    X: Matrix
    y: Codes
    columns: Moments  # of the training rows alone
    X_val: Matrix | None = None
    y_val: Codes | None = None
    notes: tuple[str, ...] = ()
    copies: dict[str, Any] = field(default_factory=dict)  # of the tables, by device; made when needed
    views: int = 1  # so many rows one behind the other are one sample's: an epoch takes one of them


class Head(ClassifierMixin, BaseEstimator, ABC):
    """A classifier of feature rows.

    `fit` takes float16, float32 or float64 arrays or memory maps X (N, D) and labels y (N,) of any type
    that sorts. Rows of float64 are predicted in float64, all others in float32. Fitted: `classes_` (C,),
    `n_features_in_`, `fit_seconds_`, `notes_` (what there is to say about the fit; some kinds save it), and
    `mean_` and `scale_` (D,), which are None when the head does not standardise; after `calibrate`
    also `temperature_`.
    """

    KIND: ClassVar[str]
    OPTIONS: ClassVar[Mapping[str, Option]]
    STANDARDIZES: ClassVar[bool] = True  # what standardize="auto" means for this kind
    BLOCKWISE: ClassVar[bool] = False  # fits on a Selection; others on a copy of its rows
    ATTRIBUTES: ClassVar[Mapping[str, type]] = {}  # fitted plain values that are saved
    ROWS_AT_ONCE: ClassVar[int] = 1  # rows that are predicted together, at least

    standardize: str
    classes_: NDArray[Any]
    n_features_in_: int
    mean_: NDArray[np.float64] | None
    scale_: NDArray[np.float64] | None
    fit_seconds_: float
    notes_: list[str]
    temperature_: float

    def fit(
        self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None
    ) -> Self:
        """Fit to rows X (N, D) and labels y (N,); validation rows are checked but never learned from.

        Validation rows of classes that y lacks are errors to an accuracy and left out of a loss; if all are
        such, it is as if there were none. `notes_` says how many there are.

        Raises:
            HeadError: an option or the data cannot be used; it is a ValueError too.
        """
        return self._fit(X, y, X_val, y_val, self._learn)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the likeliest label of every row of X (N, D), as an array (N,).

        Raises:
            HeadError: X has other columns than the head was fitted to, or holds NaN or infinity.
        """
        best = self._scores(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def predict_proba(self, X: ArrayLike) -> Matrix:
        """Return the probability of every class, (N, C), in the order of `classes_`.

        Raises:
            HeadError: as `predict`.
        """
        return self._probable(self._scores(X))

    def calibrate(self, X: ArrayLike, y: ArrayLike) -> Calibration:
        """Set the temperature of the probabilities by rows X (N, D), y (N,) that were not trained on.

        Predicted classes and decision functions stay as they are. Fitting again forgets the temperature.
        Rows of classes that the head does not know are left out: no temperature makes them right.

        Raises:
            HeadError: the rows cannot be used, or none is of a class that the head knows.
        """
        check_is_fitted(self)
        rows, labels = self._validated(X=X, y=y, reset=False)
        codes, scores = encoded(labels, self.classes_), self._scores(rows)
        known = check_known(labels, codes)
        codes, scores = codes[known], scores[known]
        before = expected_calibration_error(codes, self._probabilities(scores.copy()))
        self.temperature_, note = best_temperature(self._logits(scores), codes)
        after = expected_calibration_error(codes, self._probable(scores))
        return Calibration(self.temperature_, before, after, note)

    def check_options(self) -> None:
        """Refuse options that cannot be used.

        Raises:
            HeadError: naming the option, what was expected and what was given.
        """
        check(self.KIND, self.OPTIONS, self.get_params(deep=False))

    @abstractmethod
    def _learn(self, task: Task) -> None:
        """Set the fitted attributes."""

    @abstractmethod
    def _block_scores(self, block: Matrix) -> Matrix:
        """Return the scores (n, C) of standardised rows (n, D); the likeliest class has the largest."""

    def _scores_of_blocks(self, heads: Sequence[Head], blocks: Iterable[Matrix]) -> Iterator[list[Matrix]]:
        """Yield for each block of standardised rows the scores of each of some heads of this one's kind."""
        for block in blocks:
            yield [head._block_scores(block) for head in heads]

    def forewarning(
        self, shape: tuple[int, int], some: Callable[[Codes], tuple[Matrix, NDArray[Any]]]
    ) -> str:
        """Return what to know before a fit to rows of `shape` (N, D) that will take long; "" mostly.

        `some` returns the rows and labels at positions asked for.
        """
        return ""

    @abstractmethod
    def arrays(self) -> dict[str, ArraySpec]:
        """Return what fitted arrays there are besides mean_ and scale_; "coefs_.1" means coefs_[1]."""

    def damage(self) -> str:
        """Return what contradicts itself in fitted arrays of the right shapes; "" where nothing does."""
        return ""

    def _probabilities(self, scores: Matrix) -> Matrix:
        return softmax(scores)

    def _logits(self, scores: Matrix) -> Matrix:
        """Return what a temperature divides: values (N, C) in the order of the scores."""
        return scores

    def _probable(self, scores: Matrix) -> Matrix:
        """Return probabilities (N, C), calibrated where the head is; the scores may be overwritten."""
        if not hasattr(self, "temperature_"):
            return self._probabilities(scores)
        return tempered(self._logits(scores), self.temperature_)

    def _fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        X_val: ArrayLike | None,
        y_val: ArrayLike | None,
        learn: Callable[[Task], None],
    ) -> Self:
        self.forget()
        self.check_options()
        start = time.perf_counter()
        return self._learned(self._task(X, y, X_val, y_val), learn, start)

    def _learned(self, task: Task, learn: Callable[[Task], None], start: float) -> Self:
        """Learn from a task whose classes are set, and complete the fit that began at `start`."""
        columns = self._moments(task)
        self.mean_, self.scale_ = (columns.mean, columns.scale) if columns else (None, None)
        learn(task)
        self.notes_ = [*getattr(self, "notes_", ()), *task.notes]
        self.fit_seconds_ = time.perf_counter() - start  # set last: the fit is complete
        return self

    @property
    def draws(self) -> bool:
        """Whether a fit draws random numbers, so that its seed makes a difference."""
        return "seed" in self.OPTIONS

    @property
    def standardizes(self) -> bool:
        """Whether the columns are standardised, with "auto" resolved."""
        return self.STANDARDIZES if self.standardize == "auto" else self.standardize == "yes"

    def _moments(self, task: Task) -> Moments | None:
        return task.columns if self.standardizes else None

    def forget(self) -> None:
        """Drop all that was fitted; the options stay."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "fit_seconds_")

    def _task(self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None, y_val: ArrayLike | None) -> Task:
        rows, labels = self._validated(X=X, y=y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            only = ", ".join(map(repr, self.classes_.tolist()))
            raise HeadError(f"A head needs rows of at least two classes, y holds 1 class: {only}.")
        copies: dict[str, Any] = {}
        columns = self._measured(rows, copies)
        if X_val is None and y_val is None:
            return Task(rows, codes.astype(np.int64), columns, copies=copies)
        if X_val is None or y_val is None:
            raise HeadError("X_val and y_val go together: one was given without the other.")
        val_rows, val_labels = self._validated(X=X_val, y=y_val, reset=False)
        self._check_finite(val_rows, "X_val", copies)
        val_codes = encoded(val_labels, self.classes_)
        notes = strangers_note(val_labels, val_codes)
        if (val_codes == UNKNOWN).all():
            return Task(rows, codes.astype(np.int64), columns, notes=notes, copies=copies)
        return Task(rows, codes.astype(np.int64), columns, val_rows, val_codes, notes, copies)

    def _measured(self, X: Matrix, copies: dict[str, Any]) -> Moments:
        return moments(X)

    def _check_finite(self, X: Matrix, name: str, copies: dict[str, Any]) -> None:
        for part in row_blocks(len(X), X.shape[1]):
            check_finite(X[part], part.start, name)

    def _validated(self, **data: Any) -> Any:
        return validated(self, self.BLOCKWISE or "y" not in data, data)

    def _scores(self, X: ArrayLike) -> Matrix:
        return scores_of([self], X)[0]

    def _standardised_block(self, rows: Matrix, dtype: Any) -> Matrix:
        if self.mean_ is None or self.scale_ is None:
            return np.ascontiguousarray(rows, dtype=dtype)
        return standardised(rows, Moments(self.mean_, self.scale_, self.scale_), dtype)


class ScoredHead(Head):
    """A head whose scores mean something by themselves: it has a decision function."""

    def decision_function(self, X: ArrayLike) -> Matrix:
        """Return the scores (N, C), or with two classes (N,): positive means the second class.

        Raises:
            HeadError: as `predict`.
        """
        scores = self._scores(X)
        return scores if scores.shape[1] > 2 else scores[:, 1] - scores[:, 0]


def softmax(scores: Matrix) -> Matrix:
    """Return the softmax of every row of scores (N, C); the array given is overwritten."""
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def two_sided(scores: Matrix) -> Matrix:
    """Return scores (n, C) as they are, a column (n, 1) of two classes as minus and plus half of it.

    The softmax of the two halves is the logistic function of the column.
    """
    return scores if scores.shape[1] > 1 else np.concatenate([-scores / 2, scores / 2], axis=1)

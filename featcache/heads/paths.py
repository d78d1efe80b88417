"""Many penalties in one solve: heads that differ in C or alpha alone share every look at the table.

Logistic regression, linear support vector machines and ridge on wide tables become further columns of the
passes' products, and leave when they have arrived; other ridge takes the products of the columns once. A
head comes out as its own `fit` on the same data makes it, within its tolerance: ridge of products to the
bit, the others by rounding, for their products are taken beside others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from featcache.errors import HeadError
from featcache.heads.base import Head
from featcache.heads.batched import Data, EpochOfMany
from featcache.heads.convex import (
    FACTORISED,
    RIDGE_PASSES,
    RIDGE_TOL,
    LogisticHead,
    RidgeHead,
    direct,
    resolved,
)
from featcache.heads.svm import SVMHead

Finished = list[tuple[int, HeadError | None]]
_VARIED = {"logreg": "C", "svm": "C", "ridge": "alpha"}
_MEMORY_A_WEIGHT = 220  # bytes: twenty steps and what they changed in float32, and a few copies in float64
_MEMORY_A_SCORE = 24  # bytes: scores, a step's, and what is made of them


def key(head: Head) -> tuple[Any, ...] | None:
    """Return what heads must have in common to be solved together; None where a head is fitted alone.

    Raises:
        HeadError: an option of the head cannot be used.
    """
    head.check_options()
    alone = isinstance(head, SVMHead) and head.kernel != "linear"
    if head.KIND not in _VARIED or alone or getattr(head, "solver", "auto") == "sklearn":
        return None
    options = head.get_params(deep=False)
    varied = _VARIED[head.KIND]
    return (head.KIND, *sorted((name, value) for name, value in options.items() if name != varied))


def bytes_of(head: Head, rows: int, columns: int, classes: int) -> int:
    """Return about how much memory in bytes a head takes in a shared solve."""
    wide = classes if classes > 2 else 1
    if head.KIND == "ridge" and min(rows, columns) <= FACTORISED:
        return 8 * wide * columns
    return wide * (_MEMORY_A_WEIGHT * (columns + 1) + _MEMORY_A_SCORE * rows)


def fit_path(
    heads: Sequence[Head], data: Data, on_epoch: Callable[[EpochOfMany], None] = lambda report: None
) -> Iterator[Finished]:
    """Fit heads at once; yield those that are done, by their number, with what failed.

    `on_epoch` is called before every pass over the table. `fit_seconds_` is a head's equal share of the time.

    Raises:
        HeadError: an option cannot be used, or the heads differ in more than their penalty (see `key`).
    """
    keys = {key(head) for head in heads}
    if len(keys) != 1 or None in keys:
        raise HeadError(
            "Heads that are solved together must be logreg, ridge or linear svm and differ in their penalty "
            "alone.",
            "Fit the others apart.",
        )
    for head in heads:
        head.forget()
    start = time.perf_counter()
    ridge = isinstance(heads[0], RidgeHead) and direct(data.blocks)
    finished = _ridge(heads, data) if ridge else _linear(heads, data, on_epoch)
    seconds = (time.perf_counter() - start) / len(heads)
    for number, error in finished:
        if error is None:
            _complete(heads[number], data, seconds)
    yield finished


def _linear(heads: Sequence[Head], data: Data, on_epoch: Callable[[EpochOfMany], None]) -> Finished:
    from featcache.heads.linear import Problem, solve

    first = heads[0]
    task, classes = data.blocks, len(data.classes)
    passes = 0

    def report(alive: int) -> None:
        nonlocal passes
        passes += 1
        on_epoch(EpochOfMany(passes, alive, None))

    if isinstance(first, LogisticHead):
        tol, most = float(first.tol), int(first.max_iter)
        Cs = [float(head.C) for head in heads if isinstance(head, LogisticHead)]
    elif isinstance(first, SVMHead):
        tol, most = first.tolerance, int(first.max_iter or 1000)
        Cs = [head.penalty for head in heads if isinstance(head, SVMHead)]
    elif isinstance(first, RidgeHead):
        tol, most = RIDGE_TOL, RIDGE_PASSES
        Cs = [1 / float(head.alpha) for head in heads if isinstance(head, RidgeHead)]
    else:
        raise HeadError(f"Heads of kind {first.KIND} are not solved together.")
    problem = Problem(first.KIND, task, first._moments(task), classes, resolved(first.device))
    for head, found in zip(heads, solve(problem, Cs, tol, most, report), strict=True):
        if isinstance(head, (LogisticHead, RidgeHead, SVMHead)):
            head._keep(found)
    return [(number, None) for number in range(len(heads))]


def _ridge(heads: Sequence[Head], data: Data) -> Finished:
    from featcache.heads.squares import Squares

    first, finished = heads[0], []
    if not isinstance(first, RidgeHead):
        raise HeadError(f"Heads of kind {first.KIND} are not solved together.")
    squares = Squares(data.blocks, first._moments(data.blocks), len(data.classes), resolved(first.device))
    for number, head in enumerate(heads):
        error = None
        if isinstance(head, RidgeHead):
            try:
                head.coef_, head.intercept_ = squares.solve(float(head.alpha))
            except HeadError as found:
                error = found
        finished.append((number, error))
    return finished


def _complete(head: Head, data: Data, seconds: float) -> None:
    """Set what `fit` sets besides what was learned."""
    for name, value in data.attributes.items():
        setattr(head, name, value)
    head.classes_ = data.classes
    columns = head._moments(data.blocks)
    head.mean_, head.scale_ = (columns.mean, columns.scale) if columns else (None, None)
    head.notes_ = [*data.blocks.notes, *getattr(head, "notes_", [])]
    head.fit_seconds_ = seconds

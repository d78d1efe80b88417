"""The nearest training rows vote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import STANDARDIZE, ArraySpec, Head, Task
from featcache.heads.options import Option, choice, whole
from featcache.heads.scaling import Matrix

if TYPE_CHECKING:
    from featcache.heads.nearest import Nearest


class KNNHead(Head):
    """Votes of the k nearest training rows; the class with most votes wins, the earlier one of equals.

    `metric` is "cosine" (the usual kNN probe of frozen features, Wu et al. 2018) or "euclidean". Columns are
    not standardised unless asked for: their natural sizes are what the backbone's similarity rests on.
    Probabilities are the fractions of votes; a calibrated head adds one vote, shared out among the classes
    so that none is impossible, and its temperature divides the logarithms. k is clipped to the number of
    training rows; of rows equally far the earlier one is nearer (of many such at the k-th place any
    may be taken). `featcache.heads.nearest` says how they are found, and heads that differ in k alone and
    predict together look for them once.

    Fitted: `rows_` (N, D), the array given to fit where its type allows it, and `row_classes_` (N,).
    """

    KIND: ClassVar = "knn"
    STANDARDIZES: ClassVar = False
    ROWS_AT_ONCE: ClassVar = 2048  # against some thousand training rows: 64 MiB of products
    OPTIONS: ClassVar = {
        "k": whole("neighbours that vote", least=1),
        "metric": choice("what near means", "cosine", "euclidean"),
        "standardize": STANDARDIZE,
        "device": Option(
            "auto, cpu, cuda or cuda:N",
            "where to look for neighbours",
            lambda value: isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
        ),
    }

    rows_: Matrix
    row_classes_: NDArray[np.int64]

    def __init__(
        self, k: int = 20, metric: str = "cosine", standardize: str = "auto", device: str = "auto"
    ) -> None:
        self.k = k
        self.metric = metric
        self.standardize = standardize
        self.device = device

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what the training rows and their classes must be."""
        rows = ArraySpec(("N", self.n_features_in_), ("float16", "float32", "float64"))
        return {"rows_": rows, "row_classes_": ArraySpec(("N",), ("int64",))}

    def damage(self) -> str:
        """Return a word on rows whose class is none."""
        codes = self.row_classes_
        known = len(codes) > 0 and codes.min() >= 0 and codes.max() < len(self.classes_)
        return "" if known else "row_classes_ names classes that there are not"

    def _learn(self, task: Task) -> None:
        self.rows_, self.row_classes_ = task.X, task.y

    def _block_scores(self, block: Matrix) -> Matrix:
        return next(self._scores_of_blocks([self], [block]))[0]

    def _scores_of_blocks(self, heads: Sequence[Head], blocks: Iterable[Matrix]) -> Iterator[list[Matrix]]:
        """Yield the scores of heads that may differ in k: the nearest are looked for once."""
        voters = [min(int(head.k), len(self.rows_)) for head in heads if self._shares(head)]
        if len(voters) < len(heads):
            yield from super()._scores_of_blocks(heads, blocks)
            return
        table = self._table()
        for block in blocks:
            classes = self.row_classes_[table.find(block, max(voters))]
            yield votes(classes, voters, len(self.classes_), block.dtype)

    def _shares(self, other: Any) -> bool:
        """Whether another head of this kind looks for the same neighbours, but for how many."""
        alike = all(getattr(self, name) == getattr(other, name) for name in self.OPTIONS if name != "k")
        return (
            alike and _one(self.rows_, other.rows_) and np.array_equal(self.row_classes_, other.row_classes_)
        )

    def _probabilities(self, scores: Matrix) -> Matrix:
        return scores

    def _logits(self, scores: Matrix) -> Matrix:
        voters = min(int(self.k), len(self.rows_))
        logits: Matrix = np.log(scores * voters + 1 / scores.shape[1])
        return logits

    def nearest(self, block: Matrix) -> NDArray[np.int64]:
        """Return the k nearest training rows (n, k), nearest first, of standardised rows (n, D)."""
        return self._table().find(block, min(int(self.k), len(self.rows_)))

    def _table(self) -> Nearest:
        from featcache.heads.epochs import resolve_device  # torch
        from featcache.heads.nearest import Nearest

        cosine, device = self.metric == "cosine", resolve_device(self.device)
        return Nearest(self.rows_, cosine, self.mean_, self.scale_, device)


def _one(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays are the same memory, looked at in the same way."""
    return a.__array_interface__ == b.__array_interface__


def votes(
    classes: NDArray[np.int64], voters: Sequence[int], count: int, dtype: np.dtype[Any]
) -> list[Matrix]:
    """Return the share of votes (n, count) that each class gets from the first k of the classes (n, m)
    of a row's neighbours, for each k of `voters`."""
    found: dict[int, Matrix] = {}
    votes: Matrix = np.zeros((len(classes), count), dtype=dtype)
    for place in range(max(voters)):
        votes[np.arange(len(classes)), classes[:, place]] += 1
        if place + 1 in voters:
            found[place + 1] = votes / (place + 1)
    return [found[k] for k in voters]

"""The nearest training rows vote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import STANDARDIZE, ArraySpec, Head, Task
from featcache.heads.options import choice, whole
from featcache.heads.scaling import Matrix, row_blocks

if TYPE_CHECKING:
    from torch import Tensor


_QUERIES = 2048  # rows compared together with some thousand training rows: 64 MiB of products


class KNNHead(Head):
    """Votes of the k nearest training rows; the class with most votes wins, the earlier one of equals.

    `metric` is "cosine" (the usual kNN probe of frozen features, Wu et al. 2018) or "euclidean". Columns are
    not standardised unless asked for: their natural sizes are what the backbone's similarity rests on.
    Probabilities are the fractions of votes; a calibrated head adds one vote, shared out among the classes
    so that none is impossible, and its temperature divides the logarithms. k is clipped to the number of
    training rows; of rows equally far at the k-th place any may be taken. Products are taken in blocks, so
    that no (N, N) matrix and no copy of the table is made.

    Fitted: `rows_` (N, D), the array given to fit where its type allows it, and `row_classes_` (N,).
    """

    KIND: ClassVar = "knn"
    STANDARDIZES: ClassVar = False
    OPTIONS: ClassVar = {
        "k": whole("neighbours that vote", least=1),
        "metric": choice("what near means", "cosine", "euclidean"),
        "standardize": STANDARDIZE,
    }

    rows_: Matrix
    row_classes_: NDArray[np.int64]

    def __init__(self, k: int = 20, metric: str = "cosine", standardize: str = "auto") -> None:
        self.k = k
        self.metric = metric
        self.standardize = standardize

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
        queries = row_blocks(len(block), 1, _QUERIES)
        nearest = np.concatenate([self.nearest(block[rows]) for rows in queries])
        classes = self.row_classes_[nearest]
        votes: Matrix = np.zeros((len(block), len(self.classes_)), dtype=block.dtype)
        for column in classes.T:
            votes[np.arange(len(block)), column] += 1
        votes /= classes.shape[1]
        return votes

    def _probabilities(self, scores: Matrix) -> Matrix:
        return scores

    def _logits(self, scores: Matrix) -> Matrix:
        voters = min(int(self.k), len(self.rows_))
        logits: Matrix = np.log(scores * voters + 1 / scores.shape[1])
        return logits

    def nearest(self, block: Matrix) -> NDArray[np.int64]:
        """Return the k nearest training rows (n, k), nearest first, of prepared rows (n, D)."""
        import torch

        k = min(int(self.k), len(self.rows_))
        queries = torch.from_numpy(self._placed(block))
        best, where = queries.new_empty((len(block), 0)), torch.empty((len(block), 0), dtype=torch.int64)
        for part in row_blocks(len(self.rows_), max(self.rows_.shape[1], 512)):
            rows = torch.from_numpy(self._placed(self._standardised_block(self.rows_[part], block.dtype)))
            values, found = self._closeness(queries, rows).topk(min(k, len(rows)), dim=1)
            best, where = torch.cat([best, values], 1), torch.cat([where, found + part.start], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, order)
        nearest: NDArray[np.int64] = where.numpy()
        return nearest

    def _placed(self, rows: Matrix) -> Matrix:
        """Return rows (n, D) as the metric looks at them: for cosine of length 1, or all zeros."""
        if self.metric != "cosine":
            return rows
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        return rows / np.where(lengths > 0, lengths, 1)[:, None]

    def _closeness(self, queries: Tensor, rows: Tensor) -> Any:
        if self.metric == "cosine":
            return queries @ rows.T
        return (queries @ rows.T).mul_(2).sub_(rows.square().sum(dim=1))

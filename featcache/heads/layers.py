"""A fitted linear or network head as layers of torch in float32."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from featcache.errors import HeadError
from featcache.heads.base import Head

EXPORTED = ("linear", "mlp", "logreg", "ridge", "svm")


class HeadLayers(nn.Module):
    """A chain of linear layers with ReLU between them, from feature rows (B, D) to scores and probabilities.

    Args:
        sizes: (D, hidden…, outputs); one output is the score of the second of two classes.
        standardizes: whether rows are first lessened by `mean` and divided by `scale`, both (D,).
        temperature: what scores are divided by.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, sizes: Sequence[int], standardizes: bool = False, temperature: float = 1.0) -> None:
        super().__init__()
        self.sizes, self.standardizes, self.temperature = tuple(sizes), standardizes, temperature
        self.layers = nn.ModuleList(nn.Linear(wide, out) for wide, out in pairwise(sizes))
        if standardizes:
            self.register_buffer("mean", torch.zeros(sizes[0]))
            self.register_buffer("scale", torch.ones(sizes[0]))

    @classmethod
    def of(cls, head: Head) -> Self:
        """Return the layers of a fitted head, which do not learn.

        Raises:
            HeadError: it is no chain of linear layers.
        """
        weights, biases = _products(head)
        sizes = (weights[0].shape[1], *(weight.shape[0] for weight in weights))
        with torch.device("meta"):
            layers = cls(sizes, head.mean_ is not None, float(getattr(head, "temperature_", 1.0)))
        for layer, weight, bias in zip(layers.layers, weights, biases, strict=True):
            layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32), requires_grad=False)
            layer.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32), requires_grad=False)
        if head.mean_ is not None and head.scale_ is not None:
            layers.mean = torch.tensor(head.mean_, dtype=torch.float32)
            layers.scale = torch.tensor(head.scale_, dtype=torch.float32)
        return layers

    def scores(self, rows: Tensor) -> Tensor:
        """Return the scores (B, C) of rows (B, D), whose softmax are the probabilities."""
        if self.standardizes:
            rows = (rows - self.mean) / self.scale
        for number, layer in enumerate(self.layers):
            rows = layer(rows if number == 0 else torch.relu(rows))
        if rows.shape[1] == 1:  # the score of the second of two classes
            rows = torch.cat([-rows / 2, rows / 2], dim=1)
        return rows / self.temperature

    def forward(self, rows: Tensor) -> Tensor:
        """Return the probabilities (B, C) of rows (B, D)."""
        return torch.softmax(self.scores(rows), dim=1)


def _products(head: Any) -> tuple[list[Any], list[Any]]:
    """Return the weights (out, in) and biases (out,) of a head's layers."""
    if head.KIND not in EXPORTED or (head.KIND == "svm" and head.kernel != "linear"):
        what = f"svm with the {head.kernel} kernel" if head.KIND == "svm" else head.KIND
        raise HeadError(
            f"A head of kind {what} cannot be exported: it is no chain of linear layers.",
            f"Exported are {', '.join(EXPORTED[:-1])} and {EXPORTED[-1]} (linear); "
            "`featcache predict` runs every kind.",
        )
    if hasattr(head, "coefs_"):
        return list(head.coefs_), list(head.intercepts_)
    return [head.coef_], [head.intercept_]

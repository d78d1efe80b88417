"""A small network of linear layers with ReLU and dropout, and one training step of it, in torch.

The backward pass is written out: two products a layer into buffers that stay, with no graph to build.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from featcache.heads.masks import Masks
from featcache.heads.products import Products, outputs, rounded


class Network:
    """Linear layers of `sizes` (D, hidden…, C) with ReLU between them and dropout after each ReLU.

    `parameters` is weight (out, in) and bias (out,) of each layer in turn, initialised as torch.nn.Linear
    does (Kaiming uniform, He et al. 2015, a = sqrt 5), from `generator` alone, on the CPU. `precision` is
    that of the first layer's products while training; scores are always float32.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dropout: Sequence[float],
        generator: torch.Generator,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        self.sizes = tuple(sizes)
        self.dropout = tuple(dropout)
        self.generator = generator
        self.masks = Masks(generator, self.sizes[1:-1], self.dropout)
        self.parameters: list[Tensor] = []
        for wide, out in pairwise(self.sizes):
            bound = 1 / math.sqrt(wide)
            for shape in ((out, wide), (out,)):
                value = torch.empty(shape).uniform_(-bound, bound, generator=generator)
                self.parameters.append(value.to(device))
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        self._minus = torch.full((1, 1), -1.0, device=device)
        self.rounded = rounded(self.parameters[0], precision)  # the first weight for the products, or None
        self.products = Products(self.parameters[0], self.rounded)

    def scores(self, rows: Tensor) -> Tensor:
        """Return the scores (n, C) of float32 rows (n, D), without dropout."""
        return self._later(outputs(rows, *self.parameters[:2]), dropping=False)[-1]

    def gradient_step(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Fill `gradients` with those of the mean cross-entropy of rows (n, D); return its sum over rows.

        The rows come in the type that `products` wants.
        """
        first = self.products.outputs(rows, *self.parameters[:2])
        values = [rows, *self._later(first, dropping=True)]
        log_p = torch.log_softmax(values[-1], dim=1)
        loss = torch.nn.functional.nll_loss(log_p, classes, reduction="sum")
        true = classes[:, None]
        delta = log_p.exp_().scatter_add_(1, true, self._minus.expand_as(true)).div_(len(rows))
        for i in range(len(self.sizes) - 2, 0, -1):
            torch.mm(delta.t(), values[i], out=self.gradients[2 * i])
            torch.sum(delta, 0, out=self.gradients[2 * i + 1])
            delta = through(torch.mm(delta, self.parameters[2 * i]), values[i], self.dropout[i - 1])
        self.gradients[0] = self.products.gradient(delta, rows)
        torch.sum(delta, 0, out=self.gradients[1])
        return loss

    def learned(self) -> None:
        """Take over that the parameters have changed, by other than a step that `rounded` was given to."""
        if self.rounded is not None:
            self.rounded.copy_(self.parameters[0])

    def _later(self, first: Tensor, dropping: bool) -> list[Tensor]:
        """Return each layer's outputs, given the first one's; those before the last are what it hands on."""
        values = [first]
        for i in range(1, len(self.sizes) - 1):
            values[-1].relu_()
            if dropping:
                self.masks.hide(values[-1], i - 1)
            weight, bias = self.parameters[2 * i : 2 * i + 2]
            values.append(torch.addmm(bias, values[-1], weight.t()))
        return values


def through(delta: Tensor, output: Tensor, rate: float) -> Tensor:
    """Return the gradient before ReLU and dropout of `rate`, of `delta` after them.

    An output of the two is positive just where both let the gradient through.
    """
    found: Tensor = torch.ops.aten.threshold_backward(delta, output, 0)
    return found.div_(1 - rate) if rate else found

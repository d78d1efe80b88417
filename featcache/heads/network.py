"""A small network of linear layers with ReLU and dropout, and one training step of it, in torch.

The backward pass is written out: two products a layer into buffers that stay, with no graph to build.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from featcache.heads.masks import Masks
from featcache.heads.products import Products, outputs

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, as in torch.optim


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
        self.products = Products(self.parameters[0], precision)

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
        """Take over that the parameters have changed."""
        self.products.learned(self.parameters[0])

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


@dataclass(frozen=True)
class Rule:
    """How Adam (Kingma & Ba 2015) or AdamW (`decoupled`: Loshchilov & Hutter 2019) is to learn.

    `decay` is the L2 penalty's factor for adam and the decoupled one for adamw, as in torch.optim.
    """

    lr: float
    decay: float
    decoupled: bool


def fused(
    rule: Rule,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    counts: Sequence[Tensor],
) -> None:
    """Change parameters and their moments by torch's fused step; `counts` are the steps' numbers, from 1.

    The function below torch.optim's classes is used because making such an object imports torch's compiler.
    """
    (torch._fused_adamw_ if rule.decoupled else torch._fused_adam_)(
        list(parameters),
        list(gradients),
        list(first),
        list(second),
        [],
        list(counts),
        lr=rule.lr,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=rule.decay,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )


class Adam:
    """Adam's state for some parameters, in plain sight, and its steps."""

    def __init__(self, parameters: list[Tensor], lr: float, decay: float, decoupled: bool) -> None:
        self.parameters = parameters
        self.rule = Rule(lr, decay, decoupled)
        self.first = [torch.zeros_like(parameter) for parameter in parameters]
        self.second = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in parameters]

    def step(self, gradients: list[Tensor]) -> None:
        """Change the parameters by one step."""
        torch._foreach_add_(self.steps, 1.0)
        fused(self.rule, self.parameters, gradients, self.first, self.second, self.steps)

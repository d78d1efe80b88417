"""A small network of linear layers with ReLU and dropout, and one training step of it, in torch.

The backward pass is written out: two products a layer into buffers that stay, with no graph to build.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.optim.adam import adam


class Network:
    """Linear layers of `sizes` (D, hidden…, C) with ReLU between them and dropout after each ReLU.

    `parameters` is weight (out, in) and bias (out,) of each layer in turn, initialised as torch.nn.Linear
    does (Kaiming uniform, He et al. 2015, a = sqrt 5), from `generator` alone, on the CPU.
    """

    def __init__(
        self, sizes: Sequence[int], dropout: Sequence[float], generator: torch.Generator, device: torch.device
    ) -> None:
        self.sizes = tuple(sizes)
        self.dropout = tuple(dropout)
        self.generator = generator
        self.parameters: list[Tensor] = []
        for wide, out in pairwise(self.sizes):
            bound = 1 / math.sqrt(wide)
            for shape in ((out, wide), (out,)):
                value = torch.empty(shape).uniform_(-bound, bound, generator=generator)
                self.parameters.append(value.to(device))
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every layer."""
        return list(zip(self.parameters[::2], self.parameters[1::2], strict=True))

    def scores(self, rows: Tensor) -> Tensor:
        """Return the scores (n, C) of rows (n, D), without dropout."""
        return self._forward(rows, None)[-1]

    def gradient_step(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Fill `gradients` with those of the mean cross-entropy of rows (n, D); return its sum over rows."""
        outputs = self._forward(rows, self.dropout)
        log_p = torch.log_softmax(outputs[-1], dim=1)
        loss = log_p.gather(1, classes[:, None]).sum().neg_()
        delta = log_p.exp_()
        delta.scatter_add_(1, classes[:, None], delta.new_full((len(rows), 1), -1.0)).div_(len(rows))
        for i in range(len(self.sizes) - 2, -1, -1):
            torch.mm(delta.t(), outputs[i], out=self.gradients[2 * i])
            torch.sum(delta, 0, out=self.gradients[2 * i + 1])
            if i:  # an output of ReLU and dropout is positive just where both let the gradient through
                kept = 1 - self.dropout[i - 1]
                delta = torch.mm(delta, self.parameters[2 * i]).mul_(outputs[i] > 0).div_(kept)
        return loss

    def _forward(self, rows: Tensor, dropout: Sequence[float] | None) -> list[Tensor]:
        outputs = [rows]
        last = len(self.sizes) - 2
        for i, (weight, bias) in enumerate(self.layers):
            outputs.append(torch.addmm(bias, outputs[-1], weight.t()))
            if i < last:
                outputs[-1].relu_()
                if dropout and dropout[i]:
                    outputs[-1].mul_(self.mask(outputs[-1], 1 - dropout[i]))
        return outputs

    def mask(self, like: Tensor, kept: float) -> Tensor:
        """Return 0 or 1 / kept for each value; drawn on the CPU, so that every device drops the same ones."""
        mask = torch.empty(like.shape).bernoulli_(kept, generator=self.generator)
        return mask.div_(kept).to(like.device)


class Adam:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), torch's fused step, state in plain sight.

    `decay` is the L2 penalty's factor for adam and the decoupled one for adamw, as in torch.optim. The
    function below torch.optim's classes is used because making such an object imports torch's compiler.
    """

    def __init__(self, parameters: list[Tensor], lr: float, decay: float, decoupled: bool) -> None:
        self.parameters = parameters
        self.lr, self.decay, self.decoupled = lr, decay, decoupled
        self.first = [torch.zeros_like(parameter) for parameter in parameters]
        self.second = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in parameters]

    def step(self, gradients: list[Tensor]) -> None:
        """Change the parameters by one step."""
        adam(
            self.parameters,
            gradients,
            self.first,
            self.second,
            [],
            self.steps,
            fused=True,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self.decay,
            eps=1e-8,
            maximize=False,
        )

"""Adam's steps, by torch's fused kernels, for one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8  # as in torch.optim
_AT_ONCE = 1 << 19  # weights that a CPU widens, changes and rounds at once: its cores' caches hold them


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


def fused_and_rounded(
    rule: Rule,
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    rounded: Tensor | None,
) -> None:
    """Change one weight (R, D) by a fused step, and with it what it is `rounded` to for products.

    A gradient in the type of the products is widened. A CPU does a few rows after another, so that what is
    widened, learned and rounded is read while it is in the cache.
    """
    if rounded is None and gradient.dtype == weight.dtype:
        fused(rule, [weight], [gradient], [first], [second], [count])
        return
    step = len(weight) if weight.is_cuda else max(1, _AT_ONCE // weight.shape[1])
    wide = torch.empty((min(step, len(weight)), weight.shape[1]), device=weight.device)
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        own, slope = weight[part], gradient[part]
        if slope.dtype != own.dtype:
            slope = wide[: len(own)].copy_(slope)
        fused(rule, [own], [slope], [first[part]], [second[part]], [count])
        if rounded is not None:
            rounded[part].copy_(own)


class Adam:
    """Adam's state for some parameters, in plain sight, and its steps."""

    def __init__(self, parameters: list[Tensor], lr: float, decay: float, decoupled: bool) -> None:
        self.parameters = parameters
        self.rule = Rule(lr, decay, decoupled)
        self.first = [torch.zeros_like(parameter) for parameter in parameters]
        self.second = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in parameters]

    def step(self, gradients: list[Tensor], rounded: Tensor | None = None) -> None:
        """Change the parameters by one step, and what the first of them is `rounded` to, if anything."""
        torch._foreach_add_(self.steps, 1.0)
        values = zip(self.parameters, gradients, self.first, self.second, self.steps, strict=True)
        fused_and_rounded(self.rule, *next(values), rounded)
        others = list(zip(*values, strict=True))
        if others:
            fused(self.rule, *others)

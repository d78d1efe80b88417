"""Adam's steps, by torch's fused kernels, for one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

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


class Large:
    """A large weight and its moments, which heads with rules of their own may share, one after the other.

    `rules` are the rules and how many values of the weight each is for, in their order. A gradient in the
    type of the products is widened. What the weight is `rounded` to for the products follows it. A CPU does
    both piece by piece, so that what is widened, learned and rounded is read while it is in the cache.
    """

    def __init__(
        self, weight: Tensor, first: Tensor, second: Tensor, rules: Sequence[tuple[Rule, int]]
    ) -> None:
        self._values = [weight.view(-1), first.view(-1), second.view(-1)]
        self._rules = list(rules)
        self._whole = self._cut(weight.numel())

    @cached_property
    def _pieces(self) -> list[tuple[slice, list[_Part]]]:
        return self._whole if self._values[0].is_cuda else self._cut(_AT_ONCE)

    @cached_property
    def _wide(self) -> Tensor:
        """Where the gradient of a piece is widened."""
        longest = max(part.stop - part.start for part, _ in self._pieces)
        return torch.empty(longest, device=self._values[0].device)

    def _cut(self, most: int) -> list[tuple[slice, list[_Part]]]:
        """Return pieces of at most so many values, and the parts of one rule that each consists of."""
        found: list[tuple[slice, list[_Part]]] = []
        begin = end = 0
        parts: list[_Part] = []
        for rule, count in self._rules:
            for size in _sizes(count, most):
                if parts and end + size - begin > most:
                    found.append((slice(begin, end), parts))
                    begin, parts = end, []
                weight, first, second = (value[end : end + size] for value in self._values)
                place = slice(end - begin, end - begin + size)
                parts.append(_Part(rule, weight, first, second, place))
                end += size
        return [*found, (slice(begin, end), parts)]

    def step(self, gradient: Tensor, count: Tensor, rounded: Tensor | None) -> None:
        """Change the weight by a step of number `count`, and what it is rounded to, if anything."""
        slopes, weight = gradient.view(-1), self._values[0]
        widens = slopes.dtype != weight.dtype
        for piece, parts in self._pieces if widens or rounded is not None else self._whole:
            slope = slopes[piece]
            if widens:
                slope = self._wide[: len(slope)].copy_(slope)
            for part in parts:
                fused(part.rule, [part.weight], [slope[part.place]], [part.first], [part.second], [count])
            if rounded is not None:
                rounded.view(-1)[piece].copy_(weight[piece])


@dataclass(frozen=True)
class _Part:
    """Values of one rule, and their place in their piece."""

    rule: Rule
    weight: Tensor
    first: Tensor
    second: Tensor
    place: slice


def _sizes(count: int, most: int) -> Iterator[int]:
    """Yield sizes of at most `most` that sum up to a count."""
    for start in range(0, count, most):
        yield min(most, count - start)


class Adam:
    """Adam's state for some parameters, in plain sight, and its steps."""

    def __init__(self, parameters: list[Tensor], lr: float, decay: float, decoupled: bool) -> None:
        self.parameters = parameters
        self.rule = Rule(lr, decay, decoupled)
        self.first = [torch.zeros_like(parameter) for parameter in parameters]
        self.second = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in parameters]
        weight = parameters[0]
        self._large = Large(weight, self.first[0], self.second[0], [(self.rule, weight.numel())])

    def step(self, gradients: list[Tensor], rounded: Tensor | None = None) -> None:
        """Change the parameters by one step, and what the first of them is `rounded` to, if anything."""
        torch._foreach_add_(self.steps, 1.0)
        everything = (self.parameters, gradients, self.first, self.second, self.steps)
        if rounded is None and gradients[0].dtype == self.parameters[0].dtype:
            fused(self.rule, *everything)
            return
        self._large.step(gradients[0], self.steps[0], rounded)
        if len(self.parameters) > 1:
            fused(self.rule, *(values[1:] for values in everything))

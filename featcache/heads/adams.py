"""Adam for heads side by side, each with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from featcache.heads.network import BETAS, EPS, Rule, fused


class Adams:
    """Adam's state for stacked parameters (K, …), and steps by each head's own rule.

    The first of the parameters, by far the largest, is a fused step for heads of equal rules that stand
    next to each other; the others are `FlatAdams`'. `parameters` must be used from now on.
    """

    def __init__(self, parameters: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        self._first = torch.zeros_like(parameters[0])
        self._second = torch.zeros_like(parameters[0])
        self._count = torch.zeros((), device=self._first.device)
        self._rest = FlatAdams(parameters[1:], rules)
        self._take(parameters[0], rules)

    def _take(self, weight: Tensor, rules: Sequence[Rule]) -> None:
        groups = [(rule, len(list(same))) for rule, same in groupby(rules)]
        self._sizes = [size for _, size in groups]
        split = [value.split(self._sizes) for value in (weight, self._first, self._second)]
        self._groups = list(zip([rule for rule, _ in groups], *split, strict=True))
        self.parameters = [weight, *self._rest.parameters]

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with these heads alone, numbered anew in the order given."""
        index = torch.tensor(heads, dtype=torch.int64, device=self._count.device)
        weight, self._first, self._second = (
            value.index_select(0, index) for value in (self.parameters[0], self._first, self._second)
        )
        self._rest.keep(heads)
        self._take(weight, self._rest.rules)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change all heads' parameters by one step."""
        self._count += 1
        for (rule, own, first, second), gradient in zip(
            self._groups, gradients[0].split(self._sizes), strict=True
        ):
            fused(rule, [own], [gradient], [first], [second], [self._count])
        self._rest.step(gradients[1:])


class FlatAdams:
    """What `Adams` is, in a few operations on all heads' values at once, however many rules there are.

    On a GPU a fused step for each of a hundred small heads would be a hundred short kernels. The
    parameters are moved into one buffer: `parameters` are the views of it that must be used from now on.
    """

    def __init__(self, parameters: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        self.rules = list(rules)
        self._take(parameters)
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self.count = torch.zeros((), dtype=torch.float64, device=self._flat.device)

    def _take(self, parameters: Sequence[Tensor]) -> None:
        self._shapes = [value.shape for value in parameters]
        self._flat = torch.cat([value.flatten() for value in parameters])
        self.parameters = self._views(self._flat)
        self._work = torch.empty_like(self._flat)
        self._rate = self._of_each([rule.lr for rule in self.rules])
        self._penalty = self._of_each([0.0 if rule.decoupled else rule.decay for rule in self.rules])
        self._kept = self._of_each(
            [1 - rule.lr * rule.decay if rule.decoupled else 1.0 for rule in self.rules]
        )
        self._penalised = any(rule.decay and not rule.decoupled for rule in self.rules)
        self._decays = any(rule.decay and rule.decoupled for rule in self.rules)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _of_each(self, values: Sequence[float]) -> Tensor:
        """Return each head's value, float32, for every one of its parameters."""
        own = torch.tensor(values, dtype=torch.float32, device=self._flat.device)
        each = [own.repeat_interleave(shape.numel() // len(own)) for shape in self._shapes]
        return torch.cat(each)

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with these heads alone, numbered anew in the order given."""
        index = torch.tensor(heads, dtype=torch.int64, device=self._flat.device)
        kept = [
            [value.index_select(0, index) for value in self._views(flat)]
            for flat in (self._flat, self._first, self._second)
        ]
        self.rules = [self.rules[head] for head in heads]
        self._take(kept[0])
        self._first, self._second = (torch.cat([value.flatten() for value in each]) for each in kept[1:])

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change all heads' parameters by one step."""
        self.count += 1
        gradient = torch.cat([value.flatten() for value in gradients])
        if self._penalised:
            gradient.addcmul_(self._flat, self._penalty)
        self._first.lerp_(gradient, 1 - BETAS[0])
        self._second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        torch.sqrt(self._second, out=self._work)
        self._work.div_((1 - BETAS[1] ** self.count).sqrt()).add_(EPS).mul_(1 - BETAS[0] ** self.count)
        if self._decays:
            self._flat.mul_(self._kept)
        torch.div(self._first, self._work, out=self._work)
        self._flat.addcmul_(self._work, self._rate, value=-1.0)

"""Adam for heads side by side, each with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from featcache.heads.adam import Large, Rule, fused

_SMALL = 1 << 18  # weights a head, below which a GPU takes longer to begin a step of Adam than to do it
_UNIT = Rule(lr=1.0, decay=0.0, decoupled=False)


class FlatAdams:
    """Adam's state for stacked parameters (K, …), and steps by each head's own rule, for all heads at once.

    The parameters are moved into one buffer: `parameters` are the views of it that must be used from now
    on; a gradient that is found in its place among `gradients` need not be moved. A fused step of a
    learning rate of 1 from zero gives the direction, which each head's own rate multiplies: a few passes
    over everything, however many rules there are.
    """

    def __init__(self, parameters: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        self._take(parameters, rules)
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._count = torch.zeros((), device=self._flat.device)

    def _take(self, parameters: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        self.rules = list(rules)
        self._shapes = [value.shape for value in parameters]
        self._flat = _flat(parameters)
        self.parameters = self._views(self._flat)
        self._direction, self._gradient = torch.empty_like(self._flat), torch.empty_like(self._flat)
        self.gradients = self._views(self._gradient)
        self._rate = self._of_each([rule.lr for rule in rules])
        l2 = [0.0 if rule.decoupled else rule.decay for rule in rules]
        shrinking = [1 - rule.lr * rule.decay if rule.decoupled else 1.0 for rule in rules]
        self._l2 = self._of_each(l2) if any(l2) else None
        self._shrinking = self._of_each(shrinking) if min(shrinking) < 1 else None

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.flatten().split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _of_each(self, values: Sequence[float]) -> Tensor:
        """Return each head's value, float32, as the buffer can be multiplied by."""
        own = torch.tensor(values, dtype=torch.float32, device=self._flat.device)
        if len(self._shapes) == 1:
            return own[:, None]
        return torch.cat([own.repeat_interleave(shape.numel() // len(own)) for shape in self._shapes])

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with these heads alone, numbered anew in the order given."""
        index = torch.tensor(heads, dtype=torch.int64, device=self._flat.device)
        parameters, first, second = (
            [value.index_select(0, index) for value in self._views(flat)]
            for flat in (self._flat, self._first, self._second)
        )
        self._take(parameters, [self.rules[head] for head in heads])
        self._first, self._second = _flat(first), _flat(second)

    def _gathered(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the gradients as one, without a copy of those that are in their place or alone."""
        if len(gradients) == 1:
            return gradients[0].flatten(1)
        for place, gradient in zip(self.gradients, gradients, strict=True):
            if place.data_ptr() != gradient.data_ptr():
                place.copy_(gradient)
        return self._gradient

    def step(self, gradients: Sequence[Tensor], rounded: Tensor | None = None) -> None:
        """Change all heads' parameters by one step, and what the first is `rounded` to, if anything.

        The gradients may be overwritten.
        """
        self._count += 1
        gradient = self._gathered(gradients)
        if self._l2 is not None:
            gradient.addcmul_(self._flat, self._l2)
        self._direction.zero_()
        fused(_UNIT, [self._direction], [gradient], [self._first], [self._second], [self._count])
        if self._shrinking is not None:
            self._flat.mul_(self._shrinking)
        self._flat.addcmul_(self._direction, self._rate)
        if rounded is not None:
            rounded.copy_(self.parameters[0])


class GroupAdams:
    """The same for one stacked parameter (K, …), as a fused step for each group of heads of equal rules.

    Groups are heads that stand next to each other. A head's weights, moments and gradients are read once,
    while they are in a CPU's cache.
    """

    def __init__(self, parameters: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        self._state = [torch.zeros_like(parameters[0]) for _ in range(2)]
        self._count = torch.zeros(())
        self._take(parameters[0], rules)

    def _take(self, weight: Tensor, rules: Sequence[Rule]) -> None:
        self.parameters, self.rules = [weight], list(rules)
        self.gradients = [torch.empty_like(weight)]
        counts = [(rule, len(list(same)) * weight[0].numel()) for rule, same in groupby(rules)]
        self._large = Large(weight, self._state[0], self._state[1], counts)

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with these heads alone, numbered anew in the order given."""
        index = torch.tensor(heads, dtype=torch.int64)
        self._state = [value.index_select(0, index) for value in self._state]
        self._take(self.parameters[0].index_select(0, index), [self.rules[head] for head in heads])

    def step(self, gradients: Sequence[Tensor], rounded: Tensor | None = None) -> None:
        """Change all heads' parameters by one step, and what they are `rounded` to, if anything."""
        self._count += 1
        self._large.step(gradients[0], self._count, rounded)


class Adams:
    """Adam for all stacked parameters, in the way that suits the device and their size."""

    def __init__(self, parameters: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        weight = parameters[0]
        self._parts: list[tuple[slice, FlatAdams | GroupAdams]] = []
        if weight.is_cuda and weight[0].numel() < _SMALL:
            self._parts = [(slice(None), FlatAdams(parameters, rules))]
        else:
            kind = FlatAdams if weight.is_cuda else GroupAdams
            self._parts = [
                (slice(0, 1), kind(parameters[:1], rules)),
                (slice(1, None), FlatAdams(parameters[1:], rules)),
            ]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters (K, …), which must be used from now on."""
        return [value for _, part in self._parts for value in part.parameters]

    @property
    def gradients(self) -> list[Tensor]:
        """Where gradients (K, …) may be put; a step takes them from anywhere."""
        return [value for _, part in self._parts for value in part.gradients]

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with these heads alone, numbered anew in the order given."""
        for _, part in self._parts:
            part.keep(heads)

    def step(self, gradients: Sequence[Tensor], rounded: Tensor | None = None) -> None:
        """Change all heads' parameters by one step, and what the first is `rounded` to, if anything.

        The gradients may be overwritten.
        """
        for which, part in self._parts:
            part.step(gradients[which], rounded if which.start in (None, 0) else None)


def _flat(values: Sequence[Tensor]) -> Tensor:
    """Return all values in one row; those (K, …) of a single tensor as (K, …), without a copy."""
    if len(values) == 1:
        return values[0].flatten(1)
    return torch.cat([value.flatten() for value in values])

"""L-BFGS on linear problems, with the curvature of the rows.

L-BFGS (Liu and Nocedal, On the limited memory BFGS method, 1989) begins its recursion with the inverse of
scale · G + penalty (see `featcache.heads.curvature`), where scale is at first the mean curvature of the loss
and then what the last step says of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.heads.curvature import Curvature
from featcache.heads.descent import Descent, Stack, dot
from featcache.heads.losses import Loss
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision

MEMORY = 20  # steps remembered
_STEADY = 8.0  # factor by which the scale of the curvature may change from step to step
_STEEPEST = 3.0  # times the mean curvature, above which no step's own curvature stands for the others'
_LARGE = 1 << 24  # values of a memory from which on it is float32


@dataclass
class Memory:
    """What P descents remember: their last steps (M, P, C, D + 1), and the scales (P,) of the curvature."""

    steps: Tensor
    turns: Tensor  # by how much each step changed the gradient
    weight: Tensor
    turned: int
    curved: Tensor
    rest: Tensor


class Lbfgs(Descent):
    """A descent that remembers its steps. `memory` is that of one on the same problems that ended where this
    one begins."""

    def __init__(
        self,
        passes: Passes,
        loss: Loss,
        stack: Stack,
        precision: Precision,
        look: Curvature,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(passes, loss, stack, precision)
        self.look, self.knows = look, memory is not None
        self._recall(memory or self._nothing())

    def _nothing(self) -> Memory:
        many, device = len(self.stack), self.passes.device
        shape = (MEMORY, *self.stack.weights.shape)
        dtype = torch.float32 if 2 * MEMORY * self.stack.weights.numel() > _LARGE else torch.float64
        steps = torch.zeros(shape, dtype=dtype, device=device)
        weight = torch.zeros((MEMORY, many), dtype=torch.float64, device=device)
        one = torch.ones_like(self.stack.penalty)
        return Memory(steps, torch.zeros_like(steps), weight, 0, one, one)

    def _recall(self, memory: Memory) -> None:
        self.steps, self.turns, self.weight = memory.steps, memory.turns, memory.weight
        self.turned, self.curved, self.rest = memory.turned, memory.curved, memory.rest

    def memory(self) -> Memory | None:
        """Return what is remembered once all problems have ended; None where some ended before the others."""
        if len(self.stack) < len(self.start):
            return None
        return Memory(self.steps, self.turns, self.weight, self.turned, self.curved, self.rest)

    def _learn(self, step: Tensor, turn: Tensor, arrived: Tensor) -> None:
        """Put a step and what it changed in the place of the oldest, nothing where it says nothing."""
        product = dot(step, turn)
        says = arrived & (product > 1e-12 * (dot(step, step) * dot(turn, turn)).sqrt()) & (product > 0)
        place = self.turned % MEMORY
        self.weight[place] = torch.where(says, 1 / product, torch.zeros_like(product))
        self.steps[place], self.turns[place] = step, turn
        self.turned += 1
        penalties = self.stack.penalty, self.stack.intercept_penalty
        scale, rest = self.look.fit(step, turn, self.rest, *penalties)
        scale = torch.minimum(_near(scale, self.curved), _STEEPEST * self.mean_curved)
        self.curved = torch.where(says, scale, self.curved)
        self.rest = torch.where(says, _near(rest, self.rest), self.rest)

    def direction(self) -> Tensor:
        """Return the next steps (P, C, D + 1): zero where a gradient has to be known first."""
        if not self.knows:
            self.knows, self.curved = True, self.mean_curved
            self.rest = self.curved * self.look.rest + self.stack.penalty
        found = self.gradient.to(self.steps.dtype)
        order = [i % MEMORY for i in range(max(0, self.turned - MEMORY), self.turned)]
        shares = {}
        for i in reversed(order):
            shares[i] = self.weight[i] * dot(self.steps[i], found)
            found = found - _times(self.turns[i], shares[i])
        stack = self.stack
        found = self.look.solve(found, self.curved, self.rest, stack.penalty, stack.intercept_penalty)
        for i in order:
            back = self.weight[i] * dot(self.turns[i], found)
            found = found + _times(self.steps[i], shares[i] - back)
        step = -found.double()
        step[self.pending] = 0
        self.slope = dot(self.gradient, step)
        return step

    def keep(self, stay: list[int]) -> None:
        """Keep these problems alone, and what is remembered of them."""
        super().keep(stay)
        self.steps, self.turns, self.weight = self.steps[:, stay], self.turns[:, stay], self.weight[:, stay]
        self.curved, self.rest = self.curved[stay], self.rest[stay]


def _times(a: Tensor, factor: Tensor) -> Tensor:
    return a * factor[:, None, None].to(a.dtype)


def _near(value: Tensor, before: Tensor) -> Tensor:
    """Return values no further than a factor from those before."""
    return torch.minimum(torch.maximum(value, before / _STEADY), before * _STEADY)

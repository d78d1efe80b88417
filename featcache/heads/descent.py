"""Descent on many smooth convex problems at once, one pass over the table a step.

Most steps are taken whole; their pass gives the new gradient too. Where the slope at the end of a step says
that it went too far, the best share of it is found on the scores alone, and the next pass is for the gradient
there. Where a step leads is another module's: `featcache.heads.lbfgs`, `featcache.heads.newton`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.heads.losses import Loss
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision

_TOO_FAR = 0.9  # of the slope a step began with
_FLAT = 0.1  # of that slope, below which the rest of the way down is not looked for
_HALVINGS = 30
# What a descent holds of every problem, first dimension P.
_EACH = (
    *("gradient", "slope", "mean_curved", "part", "pending"),
    *("value", "stood", "best", "lowest", "waited"),
)


@dataclass
class Stack:
    """P problems: weights and intercepts (P, C, D + 1), for each (P,) penalties and a tolerance, float64."""

    weights: Tensor
    penalty: Tensor
    intercept_penalty: Tensor
    tolerance: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def some(self, stay: list[int]) -> Stack:
        """Return these problems alone."""
        return Stack(*(value[stay] for value in vars(self).values()))


@dataclass
class Outcome:
    """Where descents (P,) ended: weights, the largest entry of the gradient, and how many passes it took."""

    weights: Tensor
    largest: Tensor
    passes: Tensor


def descend(state: Descent, limit: int, on_pass: Callable[[int], None] = lambda alive: None) -> Outcome:
    """Descend until no entry of a problem's gradient is above its tolerance, or rounding ends it.

    `limit` is how many passes there may be after the first.
    """
    stack = state.start
    numbers = list(range(len(stack)))
    outcome = Outcome(
        stack.weights.clone(),
        torch.full_like(stack.penalty, torch.inf),
        torch.zeros(len(stack), dtype=torch.int64),
    )
    step, count = stack.weights, 0
    while True:
        on_pass(len(numbers))
        state.go(step)
        done = state.done(last=count >= limit)
        if any(done):
            leave = [i for i, gone in enumerate(done) if gone]
            at = [numbers[i] for i in leave]
            outcome.weights[at], outcome.largest[at] = state.stack.weights[leave], state.largest[leave]
            outcome.passes[at] = count
            stay = [i for i, gone in enumerate(done) if not gone]
            if not stay:
                return outcome
            numbers = [numbers[i] for i in stay]
            state.keep(stay)
        step = state.direction()
        count += 1


class Descent(ABC):
    """Problems on their way down: where they are, and their gradients. `loss` must stand at zero scores."""

    def __init__(self, passes: Passes, loss: Loss, stack: Stack, precision: Precision) -> None:
        self.passes, self.loss, self.precision = passes, loss, precision
        self.start, self.stack = stack, stack.some(list(range(len(stack))))
        self.stack.weights = torch.zeros_like(stack.weights)  # the first step leads to where they begin
        self.begun = False
        self.gradient = torch.zeros_like(stack.weights)
        self.slope = torch.zeros_like(stack.penalty)
        self.mean_curved = torch.ones_like(stack.penalty)  # of the losses, where the last step led
        self.part = torch.zeros_like(stack.weights)  # a step cut short, until the gradient after it is known
        self.pending = torch.zeros(len(stack), dtype=torch.bool, device=passes.device)
        self.value = torch.full_like(stack.penalty, torch.inf)
        self.stood = self.value  # where the last gradient was taken
        self.best, self.lowest = self.value, torch.full_like(stack.penalty, 1e300)
        self.waited = torch.zeros(len(stack), dtype=torch.int64, device=passes.device)

    @abstractmethod
    def direction(self) -> Tensor:
        """Return the next steps (P, C, D + 1): zero where a gradient has to be known first."""

    @abstractmethod
    def _learn(self, step: Tensor, turn: Tensor, arrived: Tensor) -> None:
        """Look at steps (P, C, D + 1) and what they changed, where a gradient has arrived (P,)."""

    @property
    def largest(self) -> Tensor:
        """The largest entry (P,) of each gradient."""
        return self.gradient.abs().amax(dim=(1, 2))

    def go(self, step: Tensor) -> None:
        """Try a step (P, C, D + 1): take it, or the share of it that is best."""
        count, shape = len(self.stack), step.shape
        taken, gradient = self.passes.run(step.flatten(0, 1), self.loss.residuals, self.precision)
        taken, gradient = taken.view(shape), gradient.view(shape) / self.passes.rows
        value, self.mean_curved = self.loss.taken()
        reached = self.stack.weights + taken
        pull = self._pull(reached)
        before, self.value = self.stood, value + dot(pull, reached) / 2
        gradient += pull
        share = torch.ones(count, dtype=torch.float64, device=self.passes.device)
        too_far = (self.value > before + before.abs() * self.precision.noise) | (
            dot(gradient, taken) > _TOO_FAR * self.slope.abs()
        )
        too_far &= ~self.pending
        if self.begun and bool(too_far.any()):
            share = self._share(taken, too_far)
        self._move(taken, gradient, share)

    def _move(self, taken: Tensor, gradient: Tensor, share: Tensor) -> None:
        self.loss.move(share)
        moved = taken * share[:, None, None]
        self.stack.weights += moved
        cut = share < 1
        if self.begun:
            known = torch.where(self.pending[:, None, None], self.part, moved)
            self._learn(known, gradient - self.gradient, ~cut)
        self.gradient = torch.where(cut[:, None, None], self.gradient, gradient)
        self.stood = torch.where(cut, self.stood, self.value)
        self.part, self.pending, self.begun = moved, cut, True

    def _pull(self, weights: Tensor) -> Tensor:
        """Return the gradient of the penalties at weights (P, C, D + 1)."""
        pull = weights * self.stack.penalty[:, None, None]
        pull[..., -1] = weights[..., -1] * self.stack.intercept_penalty[:, None]
        return pull

    def _share(self, taken: Tensor, wanted: Tensor) -> Tensor:
        """Return the best share of a step for the problems wanted, by secants and halvings; else 1.

        The loss there is lower for certain, where so many turns find such a place: a slope upwards, though
        small beside the one that the step began with, may have come a long way up from the lowest point.
        """
        own, along = dot(self._pull(self.stack.weights), taken), dot(self._pull(taken), taken)
        low, high = torch.zeros_like(own), torch.ones_like(own)
        down = self.slope
        up = self.loss.slopes(high) + own + along
        for turn in range(_HALVINGS):
            secant = low + (high - low) * (down / (down - up)).clamp(0.05, 0.95)
            share = secant if turn % 3 < 2 else (low + high) / 2
            slope = self.loss.slopes(share) + own + share * along
            low, down = torch.where(slope < 0, share, low), torch.where(slope < 0, slope, down)
            high, up = torch.where(slope < 0, high, share), torch.where(slope < 0, up, slope)
            # From 0 it went down at least as steeply as at `low`, and from there up at most as at `share`.
            lower = (slope < 0) | (slope * (share - low) <= -down * low)
            found = lower & (slope.abs() <= _FLAT * self.slope.abs())
            if bool(found[wanted].all()):
                break
        share = torch.where(found | (low == 0), share, low)
        return torch.where(wanted, share, torch.ones_like(share))

    def done(self, last: bool) -> list[bool]:
        """Return which problems have arrived or get no further."""
        largest = self.largest
        noise = self.lowest.abs() * self.precision.noise
        better = (largest < 0.9 * self.best) | (self.value < self.lowest - noise)
        self.best, self.lowest = torch.minimum(self.best, largest), torch.minimum(self.lowest, self.value)
        self.waited = torch.where(better, 0, self.waited + 1)
        ended = (
            (largest <= self.stack.tolerance) | (self.waited > self.precision.patience) | ~largest.isfinite()
        )
        ended &= ~self.pending
        return [last or each for each in ended.tolist()]

    def keep(self, stay: list[int]) -> None:
        """Keep these problems alone."""
        self.loss.keep(stay)
        self.stack = self.stack.some(stay)
        for name in _EACH:
            setattr(self, name, getattr(self, name)[stay])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the products (P,) of stacks (P, C, D + 1), float64."""
    return (a * b).sum(dim=(1, 2), dtype=torch.float64)

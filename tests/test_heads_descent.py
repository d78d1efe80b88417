"""Descent on linear problems: where a step ends, and what is remembered from precision to precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featcache.heads.curvature import Curvature
from featcache.heads.descent import Memory, Outcome, Stack, _State, descend
from featcache.heads.losses import CrossEntropy
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision

ONE = torch.ones(1, dtype=torch.float64)


def begun(wrong: int) -> tuple[_State, float]:
    """Return a descent at zero on 100 equal rows, so many of them of class 0, and the loss there."""
    codes = torch.tensor([0] * wrong + [1] * (100 - wrong))
    stack = Stack(torch.zeros(1, 2, 2, dtype=torch.float64), 1e-9 * ONE, 0 * ONE, 1e-12 * ONE)
    look = Curvature(torch.eye(1), ONE, 0.0)
    passes = Passes(np.ones((100, 1), np.float32), None, torch.device("cpu"))
    state = _State(passes, CrossEntropy(1, 2, codes, torch.float64), stack, look, Precision.DOUBLE, None)
    state.go(stack.weights)
    return state, float(state.value)


@pytest.mark.parametrize("length", [3.0, 30.0, 300.0, 3000.0])
@pytest.mark.parametrize("wrong", [1, 4, 20])
def test_a_step_never_ends_higher_than_it_began(length: float, wrong: int) -> None:
    """A few rows beyond their margin pull weakly, however high the loss: a small slope is not a low place."""
    state, before = begun(wrong)
    assert before == pytest.approx(math.log(2))
    step = torch.tensor([[[-length, 0.0], [length, 0.0]]], dtype=torch.float64)
    state.slope = (state.gradient * step).sum(dim=(1, 2))
    assert float(state.slope) < 0
    state.go(step)
    state.go(torch.zeros_like(step))  # the gradient where the step was cut short
    assert float(state.value) < before


def test_what_is_remembered_goes_on_in_the_next_precision() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 5, 400)
    X = (generator.normal(size=(5, 40))[y] + 2 * generator.normal(size=(400, 40))).astype(np.float32)
    passes, codes = Passes(X, None, torch.device("cpu")), torch.from_numpy(y)
    stack = Stack(torch.zeros(1, 5, 41, dtype=torch.float64), 1e-3 * ONE, 0 * ONE, 1e-3 * ONE)
    look = Curvature(torch.eye(40), torch.ones(40, dtype=torch.float64), 0.0)  # knows nothing of the table

    def descended(stack: Stack, precision: Precision, memory: Memory | None = None) -> Outcome:
        dtype = torch.float32 if precision is Precision.SINGLE else torch.float64
        loss = CrossEntropy(1, 5, codes, dtype)
        return descend(passes, loss, stack, look, precision, 500, memory=memory)

    coarse = descended(stack, Precision.SINGLE)
    finer = Stack(coarse.weights, stack.penalty, stack.intercept_penalty, 1e-7 * ONE)
    fresh = descended(finer, Precision.DOUBLE)
    informed = descended(finer, Precision.DOUBLE, coarse.memory)
    assert int(informed.passes) < int(fresh.passes)
    assert float(informed.largest) <= 1e-7
    # The intercepts may all rise by the same.
    torch.testing.assert_close(informed.weights[..., :-1], fresh.weights[..., :-1], atol=1e-4, rtol=1e-3)

"""Descent on linear problems: where a step ends, and what is remembered from precision to precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featcache.heads import newton as newton_module
from featcache.heads.base import Task
from featcache.heads.catalogue import create
from featcache.heads.curvature import Curvature
from featcache.heads.descent import Outcome, Stack, descend
from featcache.heads.lbfgs import Lbfgs, Memory
from featcache.heads.linear import Problem
from featcache.heads.losses import CrossEntropy
from featcache.heads.newton import Newton
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision
from featcache.heads.scaling import moments

ONE = torch.ones(1, dtype=torch.float64)


def begun(wrong: int) -> tuple[Lbfgs, float]:
    """Return a descent at zero on 100 equal rows, so many of them of class 0, and the loss there."""
    codes = torch.tensor([0] * wrong + [1] * (100 - wrong))
    stack = Stack(torch.zeros(1, 2, 2, dtype=torch.float64), 1e-9 * ONE, 0 * ONE, 1e-12 * ONE)
    look = Curvature(torch.eye(1), ONE, 0.0)
    passes = Passes(np.ones((100, 1), np.float32), None, torch.device("cpu"))
    state = Lbfgs(passes, CrossEntropy(1, 2, codes, torch.float64), stack, Precision.DOUBLE, look)
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

    def descended(
        stack: Stack, precision: Precision, memory: Memory | None = None
    ) -> tuple[Outcome, Memory | None]:
        dtype = torch.float32 if precision is Precision.SINGLE else torch.float64
        loss = CrossEntropy(1, 5, codes, dtype)
        state = Lbfgs(passes, loss, stack, precision, look, memory)
        return descend(state, 500), state.memory()

    coarse, known = descended(stack, Precision.SINGLE)
    finer = Stack(coarse.weights, stack.penalty, stack.intercept_penalty, 1e-7 * ONE)
    fresh, _ = descended(finer, Precision.DOUBLE)
    informed, _ = descended(finer, Precision.DOUBLE, known)
    assert int(informed.passes) < int(fresh.passes)
    assert float(informed.largest) <= 1e-7
    # The intercepts may all rise by the same.
    torch.testing.assert_close(informed.weights[..., :-1], fresh.weights[..., :-1], atol=1e-4, rtol=1e-3)


LOSSES = {"logreg": 4, "svm": 3, "ridge": 3, "two": 2}


@pytest.mark.parametrize("kind", LOSSES)
def test_newton_knows_the_second_derivatives(kind: str) -> None:
    """Those of a loss agree with differences of its gradients, and so does the objective's with its own."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, LOSSES[kind], 200)
    X = generator.normal(size=(200, 5)).astype(np.float32)
    task = Task(X, y, moments(X))
    problem = Problem(
        "logreg" if kind == "two" else kind, task, task.columns, LOSSES[kind], torch.device("cpu")
    )
    passes, loss = Passes(X, task.columns, problem.device), problem.loss(1, problem.targets(), torch.float64)
    many, columns = problem.shape(1)
    weights = torch.from_numpy(0.1 * generator.normal(size=(many, columns, 6)))
    penalty = torch.full((many,), 1e-2, dtype=torch.float64)
    newton = Newton(passes, loss, Stack(weights, penalty, 0.5 * penalty, penalty))
    newton.go(weights)
    step = 1e-6 * torch.from_numpy(generator.normal(size=(many, columns, 6)))
    beyond = Newton(passes, problem.loss(1, problem.targets(), torch.float64), newton.start)
    beyond.go(weights + step)
    for number in range(many):
        expected = (beyond.gradient - newton.gradient)[number].flatten()
        found = newton._hessian(number) @ step[number].flatten()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize(("kind", "rows", "C", "tol"), [("svm", 60, 1e5, 1e-7), ("logreg", 1500, 1e7, 1e-9)])
def test_where_the_descent_is_slow_newton_ends_the_way(
    kind: str, rows: int, C: float, tol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but separable rows, next to no penalty: more passes than a head may take, or some twenty steps."""
    generator = np.random.default_rng(5)
    hidden = generator.normal(size=(rows, 6))
    y = np.argmax(hidden @ generator.normal(size=(6, 3)) + 0.02 * generator.normal(size=(rows, 3)), axis=1)
    X = (hidden * np.geomspace(1, 1e-2, 6)) @ generator.normal(size=(6, 1200 if rows < 100 else 12))
    X = (X + 1e-3 * generator.normal(size=X.shape)).astype(np.float32)
    head = create(kind, C=C, tol=tol, standardize="no").fit(X, y)
    assert head.notes_ == [] and head.n_iter_ < 150
    monkeypatch.setattr(newton_module, "_WEIGHTS", 0)
    slow = create(kind, C=C, tol=tol, standardize="no", max_iter=150).fit(X, y)
    assert slow.notes_ != [], "the descent alone does not arrive as soon"
    assert (slow.predict(X) == head.predict(X)).mean() >= 0.99


@pytest.mark.parametrize(
    ("rows", "problems", "columns", "width", "worth"),
    [(600, 1, 1, 600, True), (40000, 10, 1, 20, True), (40000, 10, 1, 513, False), (100, 1, 10, 513, False)],
)
def test_newton_is_for_few_weights(rows: int, problems: int, columns: int, width: int, worth: bool) -> None:
    passes = Passes(np.zeros((rows, 1), np.float16), None, torch.device("cpu"))
    many = ONE.expand(problems)
    stack = Stack(torch.zeros(problems, columns, width), many, many, many)
    assert newton_module.is_worth(passes, stack) is worth

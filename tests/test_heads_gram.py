"""Linear problems of fewer rows than columns, solved in coordinates of their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.heads import linear
from featcache.heads.base import Task
from featcache.heads.gram import Rotation, RowSpace
from featcache.heads.linear import Problem, objective, solve
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision
from featcache.heads.scaling import Moments, moments
from featcache.heads.tables import here

CPU = torch.device("cpu")


def problem(kind: str, standardised: bool, classes: int = 3, rows: int = 60, columns: int = 1100) -> Problem:
    rng = np.random.default_rng(5)
    y = np.arange(rows) % classes
    X = (rng.normal(size=(classes, columns))[y] * 0.3 + rng.normal(size=(rows, columns)) + 2).astype(
        np.float16
    )
    X[:, 7] = 1.0
    found = moments(X)
    return Problem(kind, Task(X, y.astype(np.int64), found), found if standardised else None, classes, CPU)


def largest(task: Problem, C: float, coef: np.ndarray, intercept: np.ndarray) -> float:
    """Return the largest entry of the objective's gradient, computed anew in float64."""
    passes = Passes(task.task.X, task.columns, CPU)
    step = torch.from_numpy(np.concatenate([coef, intercept[:, None]], axis=1))
    _, gradient = passes.run(step, task.loss(1, task.targets(), torch.float64).residuals, Precision.DOUBLE)
    gradient /= passes.rows
    held = step / (C * passes.rows)
    if task.kind == "logreg":
        held[:, -1] = 0
    return float((gradient + held).abs().max())


@pytest.mark.parametrize("kind", ["logreg", "svm"])
@pytest.mark.parametrize("standardised", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_solution_is_that_of_the_columns(
    kind: str, standardised: bool, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, Cs, tol = problem(kind, standardised, classes), [1e-3, 1.0], 1e-7
    turned = solve(task, Cs, tol, 1000)
    monkeypatch.setattr(linear, "_FEW", 0)
    straight = solve(task, Cs, tol, 1000)
    for C, a, b in zip(Cs, turned, straight, strict=True):
        assert not a.notes and a.coef.shape == b.coef.shape
        values = [objective(task, C, each.coef, each.intercept) for each in (a, b)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        if (
            standardised or kind == "svm"
        ):  # a free intercept takes the mean out, so the rest is solved without
            scale = 1 if kind == "logreg" else 4  # svm's tol is of the largest entry at zero, below 4
            assert largest(task, C, a.coef, a.intercept) <= tol * scale
        assert np.abs(a.coef - b.coef).max() < 1e-3 * np.abs(b.coef).max()


def test_a_turn_keeps_products_and_lengths() -> None:
    task = problem("logreg", True)
    passes = Passes(task.task.X, task.columns, CPU)
    turn = Rotation.of(RowSpace(here(task.task.X), passes.mean, passes.scale))
    rows = (task.task.X.astype(np.float64) - task.task.columns.mean) / task.task.columns.scale
    assert np.allclose((turn.rows @ turn.rows.t()).numpy(), rows @ rows.T)
    assert turn.rows.shape == (60, 59)  # centred rows have a direction less
    weights = np.random.default_rng(0).normal(size=(2, 59))
    there = turn.back(weights)
    assert np.allclose(rows @ there.T, turn.rows.numpy() @ weights.T)
    assert np.allclose((there**2).sum(1), (weights**2).sum(1))


def test_rows_that_are_all_the_same_still_have_a_solution() -> None:
    X = np.ones((6, 1100), np.float32)
    y = np.array([0, 1, 0, 1, 0, 0], np.int64)
    task = Task(X, y, moments(X))
    found = solve(Problem("logreg", task, task.columns, 2, CPU), [1.0], 1e-6, 100)[0]
    assert np.abs(found.coef).max() < 1e-12
    assert found.intercept[0] == pytest.approx(np.log(2 / 4), abs=1e-4)
    assert isinstance(task.columns, Moments)

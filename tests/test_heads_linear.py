"""Our solver finds what scikit-learn's find, in every precision, shape and company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featcache.heads import curvature as curvatures
from featcache.heads import linear, passes
from featcache.heads.base import Task
from featcache.heads.catalogue import create
from featcache.heads.curvature import curvature
from featcache.heads.linear import Problem, objective, solve
from featcache.heads.losses import CrossEntropy, Logistic, Loss, SquaredHinge
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision, has_bfloat16, products_for
from featcache.heads.scaling import moments
from featcache.heads.space import Space

CPU = torch.device("cpu")
KINDS = ["logreg", "svm"]


def features(rows: int, columns: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Return rows as a ReLU gives them: correlated, many zeros, overlapping classes; float16."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    rank = min(40, columns)
    mixing = rng.normal(size=(rank, columns)) / np.sqrt(1 + np.arange(rank))[:, None]
    hidden = 0.6 * rng.normal(size=(classes, rank))[y] + rng.normal(size=(rows, rank))
    X = np.maximum(hidden @ mixing + 0.5 * rng.normal(size=(rows, columns)) - 0.3, 0)
    return X.astype(np.float16), y


def reference(kind: str, C: float, Z: Any, y: Any) -> Any:
    if kind == "logreg":
        return LogisticRegression(C=C, tol=1e-10, max_iter=20000).fit(Z, y)
    return LinearSVC(C=C, tol=1e-10, max_iter=200000, random_state=0).fit(Z, y)


def problem(kind: str, X: Any, y: Any, standardised: bool = True) -> Problem:
    columns = moments(X)
    task = Task(X, np.asarray(y, dtype=np.int64), columns)
    return Problem(kind, task, columns if standardised else None, int(y.max()) + 1, CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standardize", ["yes", "no"])
@pytest.mark.parametrize(
    ("rows", "columns", "classes", "C"),
    [(600, 40, 5, 0.1), (600, 40, 2, 1.0), (60, 200, 3, 0.01), (60, 200, 2, 10.0), (7, 5, 3, 1.0)],
)
def test_the_objective_and_the_predictions_are_scikit_learns(
    kind: str, standardize: str, rows: int, columns: int, classes: int, C: float
) -> None:
    X, y = features(rows, columns, classes)
    X[:, 3] = 1.5  # a constant column
    test, _ = features(2000, columns, classes, seed=1)
    head = create(kind, C=C, tol=1e-9, standardize=standardize).fit(X, y)
    assert head.converged_ and head.notes_ == []
    scaler = StandardScaler(with_mean=standardize == "yes", with_std=standardize == "yes")
    Z = scaler.fit_transform(X.astype(np.float64))
    theirs = reference(kind, C, Z, y)
    own = problem(kind, X, y, standardize == "yes")
    ours = objective(own, C, head.coef_, head.intercept_)
    assert ours == pytest.approx(objective(own, C, theirs.coef_, np.reshape(theirs.intercept_, -1)), rel=1e-6)
    same = head.predict(test) == theirs.predict(scaler.transform(test.astype(np.float64)))
    assert same.mean() >= 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_every_precision_leads_to_the_same_solution(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the table large enough for bfloat16 and float32 to go first, and a sketch of the curvature."""
    X, y = features(3000, 120, 4)
    own = problem(kind, X, y)
    exact = solve(own, [0.05], 1e-9, 1000)[0]
    assert exact.gradient <= 1e-9
    best = objective(own, 0.05, exact.coef, exact.intercept)
    monkeypatch.setattr(linear, "_SMALL", {})
    monkeypatch.setattr(curvatures, "NARROW", 50)
    monkeypatch.setattr("featcache.heads.passes.NARROW", 50)
    monkeypatch.setattr(curvatures, "_SKETCH", 30)
    seen = []
    kept = Passes.run
    monkeypatch.setattr(
        Passes,
        "run",
        lambda self, *a: (seen.append(a[2]), kept(self, *a))[1],  # type: ignore[func-returns-value]
    )
    for tol in (1e-4, 1e-8):
        found = solve(own, [0.05], tol, 1000)[0]
        assert found.gradient <= tol and found.notes == []
        gap = objective(own, 0.05, found.coef, found.intercept) / best - 1
        assert -1e-12 <= gap < (1e-4 if tol == 1e-4 else 1e-10)
    coarse = Precision.BRIEF if has_bfloat16() else Precision.SINGLE
    assert seen[-1] is Precision.DOUBLE
    assert seen.count(coarse) > max(5, seen.count(Precision.DOUBLE))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("precision", [Precision.BRIEF, Precision.SINGLE, Precision.DOUBLE])
def test_a_pass_is_scores_and_gradient(dtype: str, precision: Precision, monkeypatch: Any) -> None:
    monkeypatch.setattr(passes, "_CPU_BLOCK", 1000)
    monkeypatch.setattr(passes, "_SMALL_LANE", 0)  # as many threads as there are
    X, _ = features(300, 30, 3)
    X = X.astype(dtype)
    columns = moments(X)
    table = Passes(X, columns, CPU)
    step = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 31)))
    scores = torch.zeros((7, 300), dtype=torch.float64)

    def residuals(part: slice, found: torch.Tensor) -> torch.Tensor:
        scores[:, part] = found.double()
        return found.tanh()

    taken, gradient = table.run(step, residuals, precision)
    Z = torch.from_numpy((X.astype(np.float64) - columns.mean) / columns.scale)
    exact = taken[:, :-1] @ Z.t() + taken[:, -1:]
    sizes = exact.abs().mean()
    near = {Precision.BRIEF: 2e-2, Precision.SINGLE: 1e-5, Precision.DOUBLE: 1e-12}[precision]
    assert (taken - step).abs().max() < near * 0.5
    assert (scores - exact).abs().max() < near * 2 * sizes
    pulled = scores.tanh()
    wanted = torch.cat([pulled @ Z, pulled.sum(dim=1, keepdim=True)], 1)
    assert (gradient - wanted).abs().max() < near * wanted.abs().max()


def test_bfloat16_of_a_float16_is_rounded_and_scaled() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=5000) * 10.0 ** rng.integers(-3, 4, 5000)).astype(np.float16)
    products = products_for(Precision.BRIEF, torch.zeros((1, 1), dtype=torch.float64), torch.float16)
    bits = products.read(torch.from_numpy(values)[None], Space(CPU))
    assert bits.dtype == torch.bfloat16
    normal = np.abs(values) > 6.2e-5
    found = bits[0].double().numpy() * 2.0**112
    assert np.abs(found / values - 1)[normal].max() <= 2.0**-8
    assert np.abs((found / values - 1)[normal].mean()) < 2.0**-11, "it rounds: cutting off would be -2^-9"


def test_two_float16_parts_are_as_good_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's tensor cores are given, with the sums in float32 that they take it to."""
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    monkeypatch.setattr("featcache.heads.precision._CHAIN", 70)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn((200, 50), generator=rng).half()
    weights = torch.randn((6, 50), generator=rng, dtype=torch.float64) * torch.logspace(-6, 6, 6)[:, None]
    weights[3] = 0
    products, space = products_for(Precision.SPLIT, weights, torch.float16), Space(CPU)
    assert ((products.weights - weights).abs() <= 2.0**-23 * weights.abs().amax(dim=1, keepdim=True)).all()
    exact = products.weights @ rows.double().t()
    sizes = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    assert ((products.scores(products.read(rows, space)) - exact).abs() / sizes).max() < 1e-6
    residuals = torch.randn((6, 200), generator=rng) * torch.logspace(-6, 3, 6)[:, None]
    residuals[2] = 0
    sums = products.start()
    products.add(sums, residuals, products.read(rows, space), space)
    wanted = residuals.double() @ rows.double()
    sizes = wanted.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    assert ((products.finish(sums) - wanted).abs() / sizes).max() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [*KINDS, "ridge"])
@pytest.mark.parametrize("small", [0, 1 << 26])
def test_a_gpu_finds_the_same(kind: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_SMALL", {"cuda": small})
    monkeypatch.setattr(curvatures, "NARROW", 50 if small == 0 else 1024)
    monkeypatch.setattr(curvatures, "_SKETCH", 30)
    X, y = features(3000, 120, 4)
    more = {} if kind == "ridge" else {"tol": 1e-6}
    ours, theirs = (create(kind, device=device, **more).fit(X, y) for device in ("cuda", "cpu"))
    assert getattr(ours, "notes_", []) == []
    assert np.allclose(ours.coef_, theirs.coef_, atol=1e-3 * np.abs(theirs.coef_).max())
    assert (ours.predict(X) == theirs.predict(X)).mean() >= 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_are_the_derivative_and_slopes_too(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    codes = torch.arange(50) % 4
    signs = torch.where(codes == 1, 1.0, -1.0).to(dtype)
    losses: list[Loss] = [
        CrossEntropy(3, 4, codes, dtype),
        Logistic(3, 1, signs[None], dtype),
        SquaredHinge(3, 1, signs.repeat(3, 1, 1), dtype),
    ]
    for loss in losses:
        many, columns, rows = loss.scores.shape
        scores = torch.randn((many * columns, rows), generator=rng, dtype=dtype)
        leaf = scores.double().view(many, columns, rows).requires_grad_()
        if isinstance(loss, CrossEntropy):
            value = torch.nn.functional.cross_entropy(leaf, codes.expand(many, -1), reduction="none").sum(1)
        elif isinstance(loss, Logistic):
            value = torch.log1p(torch.exp(-leaf * signs)).sum((1, 2))
        else:
            value = (1 - leaf * signs).clamp(min=0).square().sum((1, 2))
        value.sum().backward()
        found = loss.residuals(slice(0, rows), scores.clone())
        near = 1e-5 if dtype == torch.float32 else 1e-12
        assert torch.allclose(found.double().view(leaf.shape), leaf.grad, atol=near)
        mean, curved = loss.taken()
        assert torch.allclose(mean, value.detach() / rows, rtol=near)
        assert ((curved > 0) & (curved < 2.1)).all()
        slopes = loss.slopes(torch.ones(many, dtype=torch.float64))
        assert torch.allclose(slopes, (leaf.grad * leaf).sum((1, 2)).detach() / rows, rtol=10 * near)


@pytest.mark.parametrize("kind", KINDS)
def test_solved_beside_others_is_solved_alone(kind: str) -> None:
    X, y = features(1500, 60, 4)
    own = problem(kind, X, y)
    Cs = [1e-4, 0.01, 1.0, 30.0]
    alive: list[int] = []
    for C, found in zip(Cs, solve(own, Cs, 1e-6, 1000, alive.append), strict=True):
        alone = solve(own, [C], 1e-6, 1000)[0]
        assert objective(own, C, found.coef, found.intercept) == pytest.approx(
            objective(own, C, alone.coef, alone.intercept), rel=1e-8
        )
        assert found.gradient <= 1e-6
    assert alive == sorted(alive, reverse=True) and alive[-1] < alive[0], "those that have arrived leave"


def test_the_curvature_of_all_columns_is_their_inverse() -> None:
    X, _ = features(500, 40, 3)
    found = curvature(Passes(X, moments(X), CPU))
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    G = torch.from_numpy(Z.T @ Z / len(Z))
    gradient = torch.randn((2, 3, 41), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, penalty = torch.tensor([0.2, 2.0], dtype=torch.float64), torch.tensor([0.1, 0.01]).double()
    nothing, rest = torch.zeros_like(penalty), torch.ones_like(penalty)
    step = found.solve(gradient, scale, rest, penalty, nothing)
    for i in range(2):
        back = step[i, :, :-1] @ (scale[i] * G + penalty[i] * torch.eye(40))
        assert torch.allclose(back, gradient[i, :, :-1], atol=2e-3)
        assert torch.allclose(step[i, :, -1] * scale[i], gradient[i, :, -1])
    again, _ = found.fit(step, gradient, rest, penalty, nothing)
    assert torch.allclose(again, scale, rtol=1e-2)


def test_a_sketch_sees_the_largest_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = features(2000, 300, 3)
    monkeypatch.setattr(curvatures, "NARROW", 10)
    monkeypatch.setattr(curvatures, "_SKETCH", 60)
    monkeypatch.setattr(curvatures, "_RUN", 256)
    found = curvature(Passes(X, moments(X), CPU))
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    values = np.linalg.eigvalsh(Z.T @ Z / len(Z))[::-1]
    seen = found.values.flip(0).numpy()
    assert np.allclose(seen[:3], values[:3], rtol=0.1)
    assert (seen[:20] <= values[:20] * 1.1).all(), "a sketch never sees more than there is"
    assert (seen[:10] >= values[:10] * 0.7).all()
    assert found.vectors.shape == (300, 60)
    assert 0 < found.rest < values[40]
    gram = found.vectors.t() @ found.vectors
    assert torch.allclose(gram, torch.eye(60), atol=1e-4)


@pytest.mark.parametrize("kind", ["logreg", "svm"])
@pytest.mark.parametrize("narrow", [True, False])
def test_a_large_C_leaves_no_direction_to_rounding(
    kind: str, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With next to no penalty 1 / curvature is huge wherever no row lies, or rounding puts a bit of one."""
    monkeypatch.setattr(linear, "_SMALL", {})
    if not narrow:
        monkeypatch.setattr(curvatures, "NARROW", 10)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 60)) * np.geomspace(1, 0.03, 60)
    y = np.argmax(rows[:, :20] @ rng.standard_normal((20, 3)) + rng.standard_normal((3000, 3)), axis=1)
    X = (rows @ rng.standard_normal((60, 400))).astype(np.float16)
    for C in (1e2, 1e5):
        head = create(kind, C=C, device="cpu").fit(X, y)
        assert head.notes_ == [] and np.isfinite(head.coef_).all()
        assert head.n_iter_ < 400


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_tables_of_low_rank_are_sketched_too(kind: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant columns alone, or fewer directions than the sketch asks for."""
    monkeypatch.setattr(linear, "_SMALL", {})
    monkeypatch.setattr(curvatures, "NARROW", 10)
    monkeypatch.setattr(curvatures, "_SKETCH", 30)
    rng = np.random.default_rng(0)
    y = np.arange(400) % 3
    hidden = rng.normal(size=(400, rank)) + 2 * rng.normal(size=(3, rank))[y]
    X = (hidden @ rng.normal(size=(rank, 100)) + 1).astype(np.float16)
    found = solve(problem(kind, X, y), [0.1], 1e-5, 500)[0]
    assert found.notes == [] and np.isfinite(found.coef).all()
    exact = LogisticRegression if kind == "logreg" else LinearSVC
    theirs = exact(C=0.1, tol=1e-9, max_iter=10**5).fit(StandardScaler().fit_transform(X.astype(float)), y)
    own = problem(kind, X, y)
    value = objective(own, 0.1, theirs.coef_, theirs.intercept_)
    assert objective(own, 0.1, found.coef, found.intercept) == pytest.approx(value, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(4, 40),
    columns=st.integers(1, 60),
    classes=st.integers(2, 4),
    C=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_small_problems_arrive(kind: str, rows: int, columns: int, classes: int, C: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.normal(3, 2, (rows, columns)).astype(np.float32), np.arange(rows) % classes
    found = solve(problem(kind, X, y), [C], 1e-6, 5000)[0]
    assert found.notes == [] and found.gradient <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_not_arriving_is_said(kind: str) -> None:
    X, y = features(300, 30, 3)
    found = solve(problem(kind, X, y), [10.0], 1e-6, 2)[0]
    assert found.iterations == 2
    assert "did not converge" in found.notes[0] and f"{found.gradient:.2g}" in found.notes[0]
    assert found.gradient > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_stays(kind: str) -> None:
    X, y = load_digits(return_X_y=True)
    ours = create(kind, tol=1e-6).fit(X, y)
    theirs = create(kind, tol=1e-6, max_iter=20000, solver="sklearn").fit(X, y)
    assert theirs.converged_
    assert np.allclose(ours.coef_, theirs.coef_, atol=2e-3)
    assert (ours.predict(X) == theirs.predict(X)).mean() >= 0.999


@pytest.mark.parametrize("kind", [*KINDS, "ridge"])
def test_a_table_is_neither_copied_nor_changed(kind: str, tmp_path: Any) -> None:
    X, y = features(400, 50, 3)
    for dtype in ("float16", "float32", "float64"):
        table = X.astype(dtype)
        before = table.copy()
        table.setflags(write=False)
        create(kind).fit(table, y)
        assert np.array_equal(table, before)

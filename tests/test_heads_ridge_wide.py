"""Ridge on tables of many rows and columns: passes over the rows instead of products of the columns."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.heads import convex
from featcache.heads.catalogue import create
from featcache.heads.data import check_data
from featcache.heads.paths import fit_path


def table(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    y = np.arange(300) % classes
    X = rng.normal(size=(classes, 40))[y] * 0.4 + rng.normal(size=(300, 40)) * np.geomspace(1, 20, 40) + 1
    return X.astype(np.float32), y


def objective(head: convex.RidgeHead, X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    rows = X.astype(np.float64)
    if head.mean_ is not None and head.scale_ is not None:
        rows = (rows - head.mean_) / head.scale_
    wanted = np.array([1]) if len(head.classes_) == 2 else head.classes_
    targets = np.where(y[:, None] == wanted, 1.0, -1.0)
    short = rows @ head.coef_.T + head.intercept_ - targets
    return float((short**2).sum() + alpha * (head.coef_**2).sum())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardize", ["yes", "no"])
def test_passes_find_what_products_find(
    classes: int, standardize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = table(classes)
    alphas = (0.1, 10.0, 1000.0)
    products = [create("ridge", alpha=a, standardize=standardize, device="cpu").fit(X, y) for a in alphas]
    monkeypatch.setattr(convex, "FACTORISED", 1)
    passes = [create("ridge", alpha=a, standardize=standardize, device="cpu") for a in alphas]
    assert list(fit_path(passes, check_data(X, y, device="cpu"))) == [[(0, None), (1, None), (2, None)]]
    alone = create("ridge", alpha=10.0, standardize=standardize, device="cpu").fit(X, y)
    for alpha, a, b in zip((*alphas, 10.0), [*products, products[1]], [*passes, alone], strict=True):
        assert not b.notes_
        assert objective(b, X, y, alpha) == pytest.approx(objective(a, X, y, alpha), rel=1e-9)
        assert np.allclose(a.coef_, b.coef_, rtol=1e-3, atol=1e-6)
        assert (a.predict(X) == b.predict(X)).all()

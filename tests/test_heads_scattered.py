"""Linear heads on scattered rows of a table: read block by block where they are, and never gathered whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from featcache.heads.catalogue import create
from featcache.heads.data import check_data
from featcache.heads.paths import fit_path
from featcache.heads.tables import here
from featcache.selection import Selection
from tests.kit_heads import same

KINDS = [
    ("logreg", {}), ("ridge", {}), ("svm", {}), ("svm", {"kernel": "rbf-approx", "landmarks": 40}),
    ("logreg", {"solver": "sklearn"}), ("svm", {"kernel": "rbf"}),
]  # fmt: skip


class Scattered(Selection):
    """A selection that says no to being turned into an array as a whole."""

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise AssertionError("the rows were gathered as a whole")


def table(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a float16 table, its labels, and the scattered rows of it that are learned from."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, rows)
    X = rng.normal(size=(3, columns))[y] + rng.normal(size=(rows, columns))
    return X.astype(np.float16), y, np.sort(rng.permutation(rows)[: rows * 4 // 5])


@pytest.mark.parametrize(("kind", "params"), KINDS, ids=lambda value: str(value))
@pytest.mark.parametrize(("rows", "columns"), [(300, 12), (60, 90)])
def test_a_head_of_scattered_rows_is_the_head_of_their_copy(
    kind: str, params: dict[str, Any], rows: int, columns: int
) -> None:
    X, y, index = table(rows, columns)
    there = create(kind, device="cpu", **params).fit(Scattered(X, index, budget=1), y[index])
    copied = create(kind, device="cpu", **params).fit(X[index], y[index])
    assert same(there, copied)
    assert (there.predict(Scattered(X, index)) == copied.predict(X[index])).all()


@pytest.mark.parametrize("kind", ["logreg", "ridge", "svm"])
def test_a_path_reads_scattered_rows_where_they_are(kind: str) -> None:
    X, y, index = table(300, 12)
    varied = "alpha" if kind == "ridge" else "C"
    found = []
    for rows in (Scattered(X, index), X[index]):
        heads = [create(kind, device="cpu", **{varied: value}) for value in (0.01, 1.0)]
        data = check_data(rows, y[index], device="cpu")
        assert list(fit_path(heads, data)) == [[(0, None), (1, None)]]
        found.append(heads)
    assert all(same(a, b) for a, b in zip(*found, strict=True))


def test_columns_are_read_of_any_table() -> None:
    X, _, index = table(50, 9)
    expected = torch.from_numpy(X[index][:, 2:5])
    assert torch.equal(here(Selection(X, index)).read_columns(slice(2, 5)), expected)
    assert torch.equal(here(X).read_columns(slice(2, 5)), torch.from_numpy(X[:, 2:5]))

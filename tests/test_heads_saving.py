"""Heads on disk: what is refused, and that nothing but numbers and plain values is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from featcache.errors import HeadError
from featcache.heads import saving
from featcache.heads.base import Head
from featcache.heads.catalogue import create
from featcache.heads.neighbours import KNNHead
from featcache.heads.packing import meta_of
from tests.kit_heads import CASES, CONTEXT, Case, blobs


def _saved(kind: str = "logreg", **options: Any) -> bytes:
    X, y = blobs()
    return saving.dumps(create(kind, **options).fit(X, y), CONTEXT)


def _rewritten(data: bytes, meta: Any = None, arrays: Any = None) -> bytes:
    """Return a head's bytes with its description or its arrays changed by a function."""
    description, tensors = meta_of(data, 1), dict(load(data))
    description = meta(description) if meta else description
    tensors = arrays(tensors) if arrays else tensors
    return bytes(save(tensors, {"featcache": json.dumps(description)}))


def _with(**changes: Any) -> Any:
    return lambda meta: {**meta, **changes}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_with(format=2), "Unknown head format 2"),
        (_with(format="1"), "Unknown head format '1'"),
        (_with(format=True), "Unknown head format True"),
        (_with(kind="lin"), "Unknown head 'lin'. Known: boosting"),
        (_with(kind=["logreg"]), "damaged"),
        (_with(params={"D": 1}), "Unknown option of head 'logreg': 'D'"),
        (_with(params={"C": -1}), "Option C of head 'logreg' cannot be -1"),
        (_with(params=None), "keys of its description"),
        (_with(columns=13), r"coef_: expected float64 \(3, 13\), got float64 \(3, 12\)|mean_: expected"),
        (_with(columns=0), "columns must be a positive integer"),
        (_with(columns=True), "columns must be a positive integer"),
        (
            _with(classes={"dtype": "int64", "values": [0, 1]}),
            r"expected float64 \(1, 12\), got float64 \(3, 12\)",
        ),
        (_with(classes={"dtype": "int64", "values": [0, 2, 1]}), "sorted"),
        (_with(classes={"dtype": "int64", "values": [0, 1, 1]}), "sorted"),
        (_with(classes={"dtype": "int64", "values": [0]}), "at least two"),
        (_with(classes={"dtype": "int8", "values": [0, 1, 1000]}), "damaged"),
        (_with(classes={"dtype": "datetime64[s]", "values": [0, 1, 2]}), "class labels of type"),
        (_with(classes={"dtype": "object", "values": [[], {}, 1]}), "numbers or names"),
        (_with(classes={}), "damaged"),
        (_with(attributes={}), "expected the values n_iter_"),
        (
            _with(attributes={"n_iter_": "3", "converged_": True, "notes_": []}),
            "n_iter_: expected int",
        ),
        (_with(fit_seconds="long"), "damaged"),
        (_with(more=1), "keys of its description"),
        (_with(temperature=0.0), "temperature must be a number"),
        (_with(temperature=-1.5), "temperature must be a number"),
        (_with(temperature=1), "temperature must be a number"),
        (_with(temperature="1"), "temperature must be a number"),
        (_with(temperature=None), "temperature must be a number"),
        (_with(temperature=1e9), "temperature must be a number"),
        (_with(temperature=float("nan")), "temperature must be a number"),
    ],
)
def test_a_changed_description_is_refused(change: Any, says: str) -> None:
    data = _saved()
    assert saving.loads(_rewritten(data, lambda meta: meta)).predict(blobs()[0]).shape == (240,)
    with pytest.raises(HeadError, match=says):
        saving.loads(_rewritten(data, change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "coef_"}, "expected the arrays coef_, intercept_"),
        (lambda t: {**t, "extra": np.zeros(1)}, "expected the arrays"),
        (lambda t: {**t, "coef_": t["coef_"][:, :5].copy()}, r"coef_: expected float64 \(3, 12\)"),
        (lambda t: {**t, "coef_": t["coef_"].astype(np.float32)}, r"coef_: expected float64 .* got float32"),
        (lambda t: {**t, "coef_": t["coef_"][None].copy()}, "coef_: expected"),
        (lambda t: {**t, "coef_": t["coef_"] * np.nan}, "coef_ holds NaN"),
        (lambda t: {**t, "scale_": t["scale_"] * 0}, "scale_ must be positive"),
    ],
)
def test_changed_arrays_are_refused(change: Any, says: str) -> None:
    with pytest.raises(HeadError, match=says):
        saving.loads(_rewritten(_saved(), arrays=change))


def test_arrays_that_contradict_each_other_are_refused() -> None:
    svm = _saved("svm", kernel="rbf")
    with pytest.raises(HeadError, match="n_support_ does not add up"):
        saving.loads(_rewritten(svm, arrays=lambda t: {**t, "n_support_": t["n_support_"] + 1}))
    with pytest.raises(HeadError, match=r"dual_coef_: expected float64 \(2, \d+\)"):
        saving.loads(_rewritten(svm, arrays=lambda t: {**t, "dual_coef_": t["dual_coef_"][:, 1:].copy()}))
    knn = _saved("knn")
    for codes in (-1, 3):
        change = {"row_classes_": np.full(240, codes)}
        with pytest.raises(HeadError, match="row_classes_ names classes"):
            saving.loads(_rewritten(knn, arrays=lambda t, change=change: {**t, **change}))
    with pytest.raises(HeadError, match=r"row_classes_: expected int64 \(240\)|rows_: expected"):
        saving.loads(_rewritten(knn, arrays=lambda t: {**t, "row_classes_": t["row_classes_"][:9].copy()}))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_or_damaged_bytes_raise_a_head_error_or_load_a_head(data: st.DataObject) -> None:
    whole = _WHOLE
    end = data.draw(st.integers(0, len(whole)))
    broken = bytearray(whole[:end])
    if broken:
        at = data.draw(st.integers(0, min(len(broken), 2000) - 1))
        broken[at] = data.draw(st.integers(0, 255))
    try:
        head = saving.loads(bytes(broken))
    except HeadError:
        return
    assert isinstance(head, Head)
    assert end == len(whole)


_WHOLE = _saved("mlp", epochs=1)


def test_hostile_headers() -> None:
    for data in (
        b"",
        b"\x00" * 8,
        b"\xff" * 8 + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        save({"a": np.zeros(1)}),
        save({"a": np.zeros(1)}, {"featcache": "[" * 100_000}),
        save({"a": np.zeros(1)}, {"featcache": "[]"}),
        save({"a": np.zeros(1)}, {"featcache": "{}"}),
        b"\x80\x04\x95pickle",
    ):
        for read in (saving.loads, saving.context_of):
            with pytest.raises(HeadError, match=r"not a head"):
                read(bytes(data))


def test_files(tmp_path: Path) -> None:
    data = _saved()
    (tmp_path / "head.safetensors").write_bytes(data)
    for path in (tmp_path / "head.safetensors", str(tmp_path / "head.safetensors")):
        assert saving.dumps(saving.loads(path), CONTEXT) == data
        assert saving.context_of(path) == CONTEXT
    with pytest.raises(HeadError, match=r"absent cannot be read: No such file"):
        saving.loads(tmp_path / "absent")
    (tmp_path / "cut").write_bytes(data[:50])
    with pytest.raises(HeadError, match="not a head"):
        saving.context_of(tmp_path / "cut")


def test_the_same_head_gives_the_same_bytes() -> None:
    X, y = blobs()
    head = create("ridge").fit(X, y)
    assert saving.dumps(head, CONTEXT) == saving.dumps(head, dict(reversed(CONTEXT.items())))
    assert b"pickle" not in saving.dumps(head)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numpy_values_as_options_survive(case: Case) -> None:
    X, y = blobs()
    options = {
        name: np.asarray(value)[()] if isinstance(value, (int, float)) else value
        for name, value in case.options.items()
    }
    head = create(case.kind, **options).fit(X, y)
    assert saving.loads(saving.dumps(head)).get_params() == head.get_params()


def test_what_cannot_be_saved() -> None:
    X, y = blobs()
    with pytest.raises(HeadError, match="not fitted"):
        saving.dumps(KNNHead())
    head = KNNHead().fit(X, np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "datetime64[D]")[y])
    with pytest.raises(HeadError, match="labels of type datetime64"):
        saving.dumps(head)
    with pytest.raises(HeadError, match="plain JSON"):
        saving.dumps(KNNHead().fit(X, y), {"fingerprint": object()})
    with pytest.raises(HeadError, match="plain JSON"):
        saving.dumps(KNNHead().fit(X, y), {"fingerprint": float("nan")})


def test_columns_are_recorded_without_being_told() -> None:
    X, y = blobs()
    assert saving.context_of(saving.dumps(KNNHead().fit(X, y))) == {"columns": 12}
    with pytest.raises(HeadError, match="fingerprint: expected nothing recorded, got f"):
        saving.check_fit({"columns": 12}, fingerprint="f", node="n", columns=12, classes=["a"])

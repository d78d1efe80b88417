"""Rows in eight bits: how far from the floats, and whatever is asked of them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import CacheError, FormatError
from featcache.heads.convex import LogisticHead
from featcache.heads.neural import LinearHead
from featcache.recipe import Recipe
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.quantised import QuantisedRows, coded, joined
from tests import kit_caches

ALL = np.ones(64, dtype=np.bool_)


def rows(seed: int = 0, n: int = 64, width: int = 7, spread: float = 1.0, mean: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(mean, spread, (n, width))
    return values.astype(np.float32)


def one(values: np.ndarray, good: np.ndarray | None = None) -> QuantisedRows:
    found = coded(values, np.ones(len(values), dtype=np.bool_) if good is None else good)
    return joined(found.codes, [len(values)], found.scale[None], found.offset[None])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(1e-30, 1e30), st.floats(-1e3, 1e3), st.integers(1, 40), st.integers(1, 9)
)
def test_no_value_is_off_by_more_than_half_a_step(
    seed: int, spread: float, shift: float, n: int, width: int
) -> None:
    values = rows(seed, n, width, spread, shift * spread)
    back = one(values)
    step = np.ptp(values.astype(np.float64), axis=0) / 255
    exact = back.codes * back.scale[0].astype(np.float64) + back.offset[0]
    allowed = step / 2 + 4 * np.spacing(np.abs(values).max(axis=0))
    assert (np.abs(exact - values) <= allowed).all()
    assert (np.abs(np.asarray(back, dtype=np.float64) - values) <= allowed).all()


def test_zeros_and_constant_columns_stay_as_they_are() -> None:
    values = np.maximum(rows(), 0)
    values[:, 2], values[:, 3] = 0.001, 0
    back = np.asarray(one(values), dtype=np.float32)
    assert ((back == 0) == (values == 0)).mean() > 0.97  # values below half a step become 0 too
    assert (back[values == 0] == 0).all()
    exact = one(values)
    assert (exact.codes[:, 2] * exact.scale[0, 2] + exact.offset[0, 2] == np.float32(0.001)).all()


def test_the_whole_range_of_codes_is_used() -> None:
    codes = coded(rows(), ALL).codes
    assert (codes.min(axis=0) == -128).all() and (codes.max(axis=0) == 127).all()


def test_bad_rows_do_not_widen_the_range() -> None:
    values, good = rows(mean=100), ALL.copy()
    expected = one(values[1:])
    values[0], good[0] = 0, False
    found = one(values, good)
    assert np.array_equal(found.scale, expected.scale) and np.array_equal(found.codes[1:], expected.codes)
    assert np.isfinite(np.asarray(one(values, np.zeros(64, dtype=np.bool_)))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_stored(value: float) -> None:
    values = rows()
    values[3, 2] = value
    with pytest.raises(CacheError, match="not finite"):
        coded(values, ALL)


def test_rows_that_were_cast_before_are_refused() -> None:
    with pytest.raises(CacheError, match="must come as float32, got int8"):
        coded(rows().astype(np.int8), ALL)


def test_the_largest_floats_fit() -> None:
    values = np.array([[3e38], [-3e38], [0]], dtype=np.float32)
    back = one(values)
    np.testing.assert_allclose(np.asarray(back), values, atol=3e38 / 255)


def test_rows_come_out_the_same_however_they_are_asked_for() -> None:
    first, second = coded(rows(1), ALL), coded(rows(2, spread=9), ALL)
    whole = joined(
        np.concatenate([first.codes, second.codes]),
        [64, 64],
        np.stack([first.scale, second.scale]),
        np.stack([first.offset, second.offset]),
    )
    plain = np.asarray(whole)
    assert plain.shape == whole.shape == (128, 7) and len(whole) == 128
    order = np.array([127, 0, 64, 63, 63])
    mask = np.arange(128) % 3 == 0
    for chosen in (slice(60, 70), order, mask, slice(None, None, -1)):
        assert np.array_equal(whole[chosen], plain[chosen])
        assert np.array_equal(np.asarray(whole.part(chosen)), plain[chosen])
    assert np.array_equal(whole[64], plain[64])
    assert np.array_equal(whole.part(order)[1:3], plain[order][1:3])
    with pytest.raises(ValueError, match="only as a copy"):
        np.asarray(whole, copy=False)


def fill(cache: Cache, bad: tuple[tuple[int, str], ...] = ()) -> Cache:
    for part in cache.todo():
        features = {node: rows(part.first, len(part), width) for node, width in cache.columns.items()}
        cache.commit(part, features, [each for each in bad if part.first <= each[0] < part.stop])
    cache.seal()
    return cache


def test_a_cache_in_int8(tmp_path: Path) -> None:
    cache = fill(kit_caches.empty_cache(tmp_path, {"train": 20, "test": 6}, store_dtype="int8"))
    assert cache.recipe.format == cache.record["format"] == 2 and cache.row_dtype == "float32"
    assert all(wrong == "" for _, wrong in cache.verify())
    table = cache.table("train", val_fraction=0)
    wanted = np.concatenate([rows(part.first, len(part), 16) for part in cache.shards()])[:20]
    assert table.X.shape == (20, 16) and table.columns == 16
    step = np.ptp(wanted, axis=0).max() / 255
    np.testing.assert_allclose(np.asarray(table.X), wanted, atol=0.51 * step + 2e-3)
    chosen = cache.table("train", val_fraction=0.25)
    assert np.array_equal(np.asarray(chosen.X), np.asarray(table.X)[chosen.index])
    feature, label = cache.torch_dataset("train", val_fraction=0)[3]
    assert np.array_equal(feature.numpy(), table.X[3].astype(np.float32)) and label == table.y[3]


def test_the_same_rows_give_the_same_bytes_in_whatever_order_shards_come(tmp_path: Path) -> None:
    caches = [kit_caches.empty_cache(tmp_path / name, {"train": 30}, store_dtype="int8") for name in "ab"]
    for cache, step in zip(caches, (1, -1), strict=True):
        for part in cache.todo()[::step]:
            assert cache.commit(part, {"flatten": rows(part.first, len(part), 16)})
    seals = [cache.seal() for cache in caches]
    assert seals[0] == seals[1]


def test_several_nodes(tmp_path: Path) -> None:
    cache = fill(kit_caches.empty_cache(tmp_path, {"train": 20}, {"a": 16, "b": 4}, store_dtype="int8"))
    table = cache.table("train", node="b", val_fraction=0)
    assert table.X.shape == (20, 4)
    with h5py.File(min((cache.path / "shards").glob("*.h5"))) as file:
        assert file["scale/b"].shape == (4,) and file["features/b"].dtype == np.int8
        example = file["offset/b"][:] + file["scale/b"][:] * file["features/b"][:]
    np.testing.assert_allclose(table.X[: len(example)], example, atol=2e-3)


def test_heads_learn_from_eight_bits(tmp_path: Path) -> None:
    eight = kit_caches.separable_cache(tmp_path, store_dtype="int8", name="eight")
    half = kit_caches.separable_cache(tmp_path, name="half")
    for head in (LogisticHead(), LinearHead(lr=0.05, epochs=5)):
        scores = []
        for cache in (eight, half):
            table, test = cache.table("train", val_fraction=0), cache.table("test")
            scores.append(float(head.fit(table.X, table.y).score(test.X, test.y)))
        assert abs(scores[0] - scores[1]) < 0.05 and scores[0] > 0.6


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_network_head_makes_no_copy_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    """Rows become floats a block or a batch at a time; from a whole copy the same is learned."""
    cache = kit_caches.separable_cache(tmp_path, width=4096, store_dtype="int8")
    table, asked, values = cache.table("train", val_fraction=fraction), list[int](), QuantisedRows._values

    def counted(self: QuantisedRows, codes: np.ndarray, shard: np.ndarray) -> np.ndarray:
        asked.append(len(codes))
        return values(self, codes, shard)

    monkeypatch.setattr(QuantisedRows, "_values", counted)
    head = LinearHead(lr=0.01, epochs=3).fit(table.selection, table.y)
    assert asked and max(asked) <= 64 < len(table)
    copied = LinearHead(lr=0.01, epochs=3).fit(np.asarray(table.X), table.y)
    np.testing.assert_allclose(head.coefs_[0], copied.coefs_[0], atol=1e-5)


def test_formats(tmp_path: Path) -> None:
    """A version that knows only format 1 must stop at int8, and go on reading floats."""
    floats, eight = kit_caches.recipe(), kit_caches.recipe(store_dtype="int8")
    assert (floats.format, eight.format) == (1, 2)
    with pytest.raises(FormatError, match="format 1 cannot store 'int8'"):
        Recipe.from_dict({**eight.to_dict(), "format": 1})
    with pytest.raises(FormatError, match="format 3 cannot store 'int8'"):
        Recipe.from_dict({**eight.to_dict(), "format": 3})
    cache = kit_caches.empty_cache(tmp_path, {"train": 4}, store_dtype="int8")
    assert records.read(cache.path / "recipe.json")["format"] == 2

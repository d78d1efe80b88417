"""Heads on augmented views: one drawn for each sample and epoch, all of them, or the clean one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featcache
from featcache.errors import HeadError, OptionError
from featcache.heads.batched import check_data, fit_together
from featcache.heads.neural import LinearHead, MLPHead
from featcache.heads.rows import Rows
from featcache.heads.tables import Shared
from featcache.heads.views import drawn
from featcache.images.policies import policy_of
from featcache.recipe import Views
from featcache.store.cache import Cache
from featcache.training import fit
from featcache.training.fit import Training
from tests.kit_caches import empty_cache

V, WIDTH = 3, 6


def viewed(samples: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (samples * V, WIDTH) of three classes, views of a sample in a row, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % 3
    centres = 2 * rng.normal(size=(3, WIDTH))
    rows = centres[y][:, None] + rng.normal(size=(samples, V, WIDTH))
    return rows.reshape(-1, WIDTH).astype(np.float32), np.repeat(y, V)


def cache_of(folder: Path, of: str = "all", store_dtype: str = "float16", count: int = V) -> Cache:
    """A finished cache with views; view v of a row is its clean features plus noise of v's own."""
    views = Views(count, policy_of("crop"), 0, of) if count > 1 else None
    cache = empty_cache(folder, {"train": 60, "test": 30}, {"flatten": WIDTH}, 16, store_dtype, views=views)
    centres = 2 * np.random.default_rng(1).normal(size=(3, WIDTH))
    for part in cache.todo():
        labels = cache.plan.labels[part.first : part.stop]
        axis = cache.recipe.views_in(part.split)
        noise = np.random.default_rng([2, part.first]).normal(size=(len(part), V, WIDTH))[:, :axis]
        rows = (centres[labels][:, None] + 1.5 * noise).astype(cache.row_dtype)
        cache.commit(part, {"flatten": rows if axis > 1 else rows[:, 0]})
    cache.seal()
    return cache


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 60),
    views=st.integers(2, 6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(1, 500),
    shuffle=st.integers(0, 99),
)
def test_a_view_of_each_sample_whatever_the_order(
    samples: int, views: int, seed: int, epoch: int, shuffle: int
) -> None:
    plain = torch.arange(samples)
    order = plain[torch.randperm(samples, generator=torch.Generator().manual_seed(shuffle))]
    straight, mixed = drawn(plain, views, seed, epoch), drawn(order, views, seed, epoch)
    assert torch.equal(straight[order], mixed)
    assert torch.equal(straight // views, plain) and torch.equal(drawn(plain, 1, seed, epoch), plain)


def test_epochs_and_seeds_draw_others_and_each_view_as_often() -> None:
    order = torch.arange(3000)
    found = torch.stack([drawn(order, 4, seed, epoch) % 4 for seed, epoch in ((0, 1), (0, 2), (1, 1))])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.2 < (found[a] == found[b]).double().mean() < 0.3
    assert (torch.bincount(found.flatten()).double() / 9000 - 0.25).abs().max() < 0.02


def test_an_epoch_has_one_row_of_each_sample() -> None:
    X, y = viewed(10)
    place = Shared(X)
    rows = Rows(place, y, None, 4, torch.float32, V)
    assert len(rows) == 10 and rows.steps == (2, 2)
    order = drawn(torch.randperm(10, generator=torch.Generator().manual_seed(0)), V, 0, 1)
    seen = torch.cat([batch.clone() for batch, _ in rows.batches(order)])
    labels = torch.cat([classes for _, classes in rows.batches(order)])
    assert torch.equal(seen, torch.from_numpy(X)[order]) and torch.equal(labels, torch.from_numpy(y)[order])
    rows.begin(order)
    assert all(torch.equal(rows.next()[0], seen[first : first + 4]) for first in (0, 4))


def test_what_is_learned_is_what_was_drawn() -> None:
    """A whole epoch in one batch: the step taken is that on the rows that `drawn` names."""
    X, y = viewed(12)
    head = LinearHead(epochs=1, batch_size=64, patience=None, seed=3, standardize="no").fit(X, y, views=V)
    rows = drawn(torch.arange(12), V, 3, 1).numpy()
    same = LinearHead(epochs=1, batch_size=64, patience=None, seed=3, standardize="no").fit(X[rows], y[rows])
    assert np.allclose(head.coefs_[0], same.coefs_[0], atol=1e-6)
    assert head.history_[0]["train_loss"] == pytest.approx(same.history_[0]["train_loss"], rel=1e-5)


def test_columns_are_standardised_by_all_views() -> None:
    X, y = viewed()
    head = MLPHead(epochs=2).fit(X, y, views=V)
    assert head.mean_ is not None and np.allclose(head.mean_, X.mean(axis=0), atol=1e-6)
    assert np.allclose(head.scale_, X.std(axis=0), atol=1e-6)


def test_heads_together_draw_as_alone() -> None:
    X, y = viewed(60)
    X_val, y_val = viewed(20, 1)
    options = [{"lr": lr, "seed": seed} for lr in (1e-3, 1e-2) for seed in (0, 5)]
    heads = [LinearHead(epochs=6, batch_size=16, **each) for each in options]
    for _ in fit_together(heads, check_data(X, y, X_val, y_val, views=V)):
        pass
    for head, each in zip(heads, options, strict=True):
        alone = LinearHead(epochs=6, batch_size=16, **each).fit(X, y, X_val, y_val, views=V)
        assert head.n_epochs_ == alone.n_epochs_
        assert np.allclose(head.coefs_[0], alone.coefs_[0], atol=1e-4)


def test_a_training_that_is_continued_draws_the_same() -> None:
    X, y = viewed()
    states: list[Any] = []
    whole = MLPHead(epochs=5, patience=None, batch_size=16).fit(
        X, y, views=V, on_epoch=lambda report: states.append(report.state())
    )
    later = MLPHead(epochs=5, patience=None, batch_size=16).fit(X, y, views=V, resume=states[1])
    assert all(np.array_equal(a, b) for a, b in zip(whole.coefs_, later.coefs_, strict=True))


def test_rows_that_are_no_views_are_refused() -> None:
    X, y = viewed()
    with pytest.raises(HeadError, match="119 rows cannot be groups of 3 views"):
        LinearHead().fit(X[:-1], y[:-1], views=V)
    with pytest.raises(HeadError, match="Views of one sample have different labels"):
        LinearHead().fit(X, np.roll(y, 1), views=V)


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_modes(tmp_path: Path, store_dtype: str) -> None:
    cache = cache_of(tmp_path, store_dtype=store_dtype)
    table, val = cache.table("train", views="all"), cache.table("val")
    every = np.asarray(table.selection)
    modes: dict[tuple[str, str | None], Any] = {}
    for kind, mode in (
        ("linear", None),
        ("linear", "all"),
        ("linear", "clean"),
        ("logreg", None),
        ("logreg", "clean"),
    ):
        modes[kind, mode] = fit.train(cache, Training(kind, test=True, view_mode=mode))
    assert modes["linear", None].record["views"] == {"mode": "random", "count": V}
    assert modes["logreg", None].record["views"] == {"mode": "all", "count": V}
    assert modes["logreg", "clean"].record["views"] == {"mode": "clean", "count": V}
    assert {found.record["train_rows"] for found in modes.values()} == {48}
    for (kind, mode), trained in modes.items():
        rows = every if mode != "clean" else every[::V]
        assert np.allclose(trained.head.mean_, rows.mean(axis=0, dtype=np.float64), atol=1e-5), (kind, mode)
        assert trained.record["val"]["n"] == len(val) == 12
    best = featcache.LogisticHead().fit(every, table.labels, np.asarray(val.X), val.y)
    assert np.allclose(best.predict_proba(val.X), modes["logreg", None].head.predict_proba(val.X), atol=2e-3)


def test_test_predictions_averaged_over_views(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    plain = fit.train(cache, Training("logreg", test=True))
    averaged = fit.train(cache, Training("logreg", test=True, test_views=True))
    table = cache.table("test", views="all")
    proba = averaged.head.predict_proba(np.asarray(table.selection)).reshape(30, V, 3).mean(axis=1)
    accuracy = (proba.argmax(axis=1) == table.y).mean()
    assert averaged.record["test"]["accuracy"] == pytest.approx(accuracy)
    assert averaged.record["test"]["views"] == V and "views" not in plain.record["test"]
    assert averaged.record["test"]["log_loss"] < plain.record["test"]["log_loss"]
    shown = featcache.evaluate(plain.record["run"], test_views=True, features_dir=tmp_path)
    assert shown["test"]["accuracy"] == averaged.record["test"]["accuracy"]
    again = featcache.evaluate(plain.record["run"], features_dir=tmp_path)
    assert again["test"] == plain.record["test"], "what a run has stays"


def test_sweeps_folds_and_curves_keep_the_views_of_a_sample_together(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    common: dict[str, Any] = {"features_dir": tmp_path, "val_fraction": 0.2}
    swept = featcache.sweep(cache, "logreg", {"C": [0.01, 0.1]}, **common)
    alone = fit.train(cache, Training("logreg", {"C": swept.best["params"]["C"]}))
    assert swept.best["views"] == {"mode": "all", "count": V}
    assert swept.best["val"]["accuracy"] == alone.record["val"]["accuracy"]
    assert featcache.sweep(cache, "logreg", {"C": [0.01, 0.1]}, **common).found == 2
    clean = featcache.sweep(cache, "logreg", {"C": [0.01, 0.1]}, view_mode="clean", **common)
    assert clean.found == 0 and clean.best["views"]["mode"] == "clean"
    folded = featcache.sweep(cache, "linear", {"lr": [1e-2]}, cv=3, epochs=2, **common)
    assert folded.best["train_rows"] == 60 and folded.best["views"]["mode"] == "random"
    assert folded.best["cv"]["n"] == 60, "each sample validates once, by its clean view"
    curve = featcache.sweep(cache, "linear", {"lr": [1e-2]}, few_shot=(4,), trials=2, epochs=2, **common)
    assert curve.curve[0].rows == 12


def test_modes_that_cannot_be(tmp_path: Path) -> None:
    cache, plain = cache_of(tmp_path, of="train"), cache_of(tmp_path / "plain", count=1)
    with pytest.raises(OptionError, match="A ridge head is not trained by epochs"):
        fit.train(cache, Training("ridge", view_mode="random"))
    with pytest.raises(OptionError, match="has no augmented views of test images") as error:
        fit.train(cache, Training("ridge", test=True, test_views=True))
    assert "--views-of all" in error.value.hint
    with pytest.raises(OptionError, match="averaged over in a test"):
        fit.train(cache, Training("ridge", test_views=True))
    for mode in ("random", "all"):
        with pytest.raises(OptionError, match="has no augmented views"):
            fit.train(plain, Training("linear", view_mode=mode))
    with pytest.raises(OptionError, match="Unknown view mode 'some'"):
        fit.train(cache, Training("linear", view_mode="some"))
    assert fit.train(plain, Training("ridge", view_mode="clean")).record["views"] is None


def test_a_checkpointed_run_goes_on_with_its_views(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    training = Training("linear", {"epochs": 3, "patience": None}, keep_checkpoints=2, view_mode="all")
    run = fit.train(cache, training).record["run"]
    longer = fit.resume(tmp_path, run, epochs=5)
    whole = fit.train(cache, Training("linear", {"epochs": 5, "patience": None}, view_mode="all"))
    assert longer.record["views"]["mode"] == "all"
    assert np.array_equal(longer.head.coefs_[0], whole.head.coefs_[0])  # type: ignore[attr-defined]


def test_a_memory_budget_changes_no_number(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for mode in ("random", "all", "clean"):
        heads = [
            fit.train(cache, Training("linear", {"epochs": 2}, view_mode=mode, memory_budget=budget)).head
            for budget in (None, 8192)
        ]
        assert np.array_equal(heads[0].coefs_[0], heads[1].coefs_[0])  # type: ignore[attr-defined]

"""Comparing runs: the same samples in the same order, the right words, and refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import DamagedError, OptionError, RunError
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.store.records import cache_key
from featcache.training import runs
from featcache.training.compare import compare
from featcache.training.evaluate import evaluate
from featcache.training.fit import Training, train
from tests.kit_caches import empty_cache, fill, recipe, separable_cache

CLASSES = 3


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return fill(empty_cache(tmp_path, {"train": 30, "test": 1000}, rows_per_shard=500))


SPLIT = {"val_fraction": 0.2, "split_seed": 42, "split_mode": "random"}


def _predicted(
    cache: Cache, name: str, right: np.ndarray, split: str = "test", order: np.ndarray | None = None
) -> Path:
    """Write a run that got these rows of a split right, its predictions in any order."""
    rows = np.array(cache.plan.range_of(split))[: len(right)]
    labels = cache.plan.labels[rows]
    predicted = np.where(right, labels, (labels + 1) % CLASSES)
    arrays = {"row": rows, "label": labels, "proba": np.eye(CLASSES, dtype=np.float32)[predicted]}
    order = np.arange(len(rows)) if order is None else order
    facts = {"run": name, "head": name.split("-")[0], "cache": cache.name, "epochs": None, "val": None}
    facts |= {"params": {}, "split": SPLIT, "node": cache.nodes[0]}
    measures = dict.fromkeys(("accuracy", "top5", "macro_f1", "log_loss", "ece"), float(right.mean()))
    facts |= {"test": None, split: {**measures, "worst_class": {"class": "ape", "f1": 0.5}}}
    facts |= {"best_epoch": None, "fit_seconds": 0.5, "notes": []}
    folder = runs.folder_of(cache.path, name)
    runs.write_run(folder, facts, b"", [], {f"{split}/{key}": array[order] for key, array in arrays.items()})
    return folder


def _right(cache_rows: int, wrong: range) -> np.ndarray:
    hits = np.ones(cache_rows, dtype=bool)
    hits[list(wrong)] = False
    return hits


def test_a_clear_difference_is_told_in_points(cache: Cache) -> None:
    worse = _predicted(cache, "knn-aaaaaaaa", _right(1000, range(100)))
    better = _predicted(cache, "mlp-bbbbbbbb", _right(1000, range(60, 110)))
    found = compare([worse, better])
    assert (found["split"], found["rows"], found["resamples"]) == ("test", 1000, 10_000)
    assert [row["accuracy"] for row in found["runs"]] == [0.9, 0.95]
    (pair,) = found["pairs"]
    assert (pair["only_a"], pair["only_b"], pair["better"]) == (10, 60, "mlp-bbbbbbbb")
    assert pair["difference"] == pytest.approx(0.05) and 0.03 < pair["low"] < 0.05 < pair["high"] < 0.07
    says = r"mlp-bbbbbbbb is better than knn-aaaaaaaa by 5\.00 points, interval 3\.\d\d to 6\.\d\d"
    assert re.match(rf"{says} \(McNemar p < 0\.0001\)\.$", pair["verdict"])
    (turned,) = compare([better, worse])["pairs"]
    assert turned["better"] == "mlp-bbbbbbbb" and turned["difference"] == pytest.approx(-0.05)
    assert re.match(says, turned["verdict"])


def test_a_difference_that_chance_explains_is_not_called_one(cache: Cache) -> None:
    a = _predicted(cache, "knn-aaaaaaaa", _right(1000, range(100)))
    b = _predicted(cache, "mlp-bbbbbbbb", _right(1000, range(20, 115)))
    (pair,) = compare([a, b])["pairs"]
    assert pair["better"] is None and pair["low"] < 0 < pair["high"] and pair["p"] > 0.05
    assert "No difference between knn-aaaaaaaa and mlp-bbbbbbbb can be told" in pair["verdict"]
    assert "mlp-bbbbbbbb has 0.50 points more" in pair["verdict"]
    same = compare([a, _predicted(cache, "svm-cccccccc", _right(1000, range(100)))])["pairs"][0]
    assert same["p"] == 1 and "right on the very same rows" in same["verdict"]
    even = compare([a, _predicted(cache, "svm-dddddddd", _right(1000, range(10, 110)))])["pairs"][0]
    assert "right equally often" in even["verdict"]


def test_many_pairs_are_corrected_for(cache: Cache) -> None:
    wrongs = (range(100), range(10, 93), range(20, 108))
    folders = [_predicted(cache, f"knn-{i:08d}", _right(1000, wrong)) for i, wrong in enumerate(wrongs)]
    alone = compare(folders[:2])["pairs"][0]
    found = compare(folders)
    assert len(found["pairs"]) == 3
    first = found["pairs"][0]
    assert first["p"] == alone["p"] == alone["p_holm"] and first["p_holm"] > first["p"]
    assert (first["low"], first["high"]) == (alone["low"], alone["high"])  # whatever else is compared
    assert "corrected for 3 pairs" in first["verdict"]


def test_rows_are_matched_by_id_whatever_their_order(cache: Cache) -> None:
    a = _predicted(cache, "knn-aaaaaaaa", _right(1000, range(100)))
    b = _predicted(cache, "mlp-bbbbbbbb", _right(1000, range(60, 110)))
    expected = compare([a, b])
    _predicted(
        cache, "mlp-bbbbbbbb", _right(1000, range(60, 110)), order=np.random.default_rng(0).permutation(1000)
    )
    assert compare([a, b]) == expected


def _other(cache: Cache, folder: Path, plan: Plan, width: int = 5) -> Cache:
    """A cache of the same data set under another recipe, with this plan."""
    record = {key: cache.record[key] for key in ("dataset", "rows_per_shard", "request", "versions")}
    made = recipe({"avgpool": "avg"})
    key = cache_key(made.fingerprint, cache.record["dataset"]["fingerprint"])
    whole = {**record, "recipe": made.to_dict(), "columns": {"avgpool": width}, "key": key}
    return fill(Cache.create(folder / f"toys--resnet18--{key[:10]}", whole, plan))


def test_caches_of_one_data_set_are_compared_by_id(cache: Cache, tmp_path: Path) -> None:
    twin = _other(cache, tmp_path, cache.plan)
    a, b = train(cache, Training("knn", test=True)), train(twin, Training("knn", test=True))
    found = compare([a.folder, b.folder])
    assert [row["cache"] for row in found["runs"]] == [cache.name, twin.name]
    assert found["rows"] == 1000
    right = [
        (stored["test/proba"].argmax(1) == stored["test/label"])
        for stored in (runs.read_predictions(run.folder, run.record) for run in (a, b))
    ]
    assert found["pairs"][0]["only_a"] == (right[0] & ~right[1]).sum()


def test_other_rows_are_refused(cache: Cache, tmp_path: Path) -> None:
    a = _predicted(cache, "knn-aaaaaaaa", _right(1000, range(100)))
    b = _predicted(cache, "mlp-bbbbbbbb", _right(900, range(100)))
    with pytest.raises(
        RunError, match=r"not evaluated on the same rows: 1000 and 900 rows, 900 of the same id\."
    ):
        compare([a, b])
    hashes = cache.plan.hashes.copy()
    hashes[40] ^= 1
    other = _other(cache, tmp_path, Plan(cache.plan.ids, cache.plan.labels, cache.plan.splits, hashes))
    c = _predicted(other, "svm-cccccccc", _right(1000, range(100)))
    with pytest.raises(RunError, match=r"1 of these with another image or class, such as test/000040\.png"):
        compare([a, c])


def test_other_validation_rows_are_refused_with_the_options_that_made_them(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    a, b = (train(cache, Training("ridge", split_seed=seed)).folder for seed in (1, 2))
    with pytest.raises(RunError, match="48 and 48 rows") as caught:
        compare([a, b])
    assert "--split-seed" in caught.value.hint
    assert compare([a])["split"] == "val"


def test_test_is_taken_where_all_have_it_and_val_else(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    a, b = train(cache, Training("ridge")), train(cache, Training("mlp", {"epochs": 2}, test=True))
    found = compare([a.folder, b.folder])
    assert found["split"] == "val" and "chose when to stop" in found["notes"][0]
    with pytest.raises(RunError, match=f"No predictions on test in {a.record['run']}") as caught:
        compare([a.folder, b.folder], "test")
    assert f"featcache evaluate {a.record['run']}" in caught.value.hint
    evaluate(a.folder)
    assert compare([a.folder, b.folder])["split"] == "test"
    assert compare([a.folder, b.folder], "val")["split"] == "val"
    without = train(cache, Training("ridge", val_fraction=0))
    with pytest.raises(RunError, match="No predictions on val"):
        compare([a.folder, without.folder])


def test_a_clean_sheet_is_not_certain(cache: Cache) -> None:
    found = compare([_predicted(cache, "knn-aaaaaaaa", _right(1000, range(0)))])
    assert found["pairs"] == [] and found["runs"][0]["low"] == 1
    assert "knn-aaaaaaaa is right on every row" in found["notes"][0] and "0.9963" in found["notes"][0]


def test_what_cannot_be_compared_is_refused(cache: Cache) -> None:
    a = _predicted(cache, "knn-aaaaaaaa", _right(1000, range(100)))
    with pytest.raises(OptionError, match="named twice"):
        compare([a, a])
    with pytest.raises(OptionError, match="nothing to compare"):
        compare([])
    with pytest.raises(OptionError, match="Unknown split 'train'"):
        compare([a], "train")


@pytest.mark.parametrize("change", [{"test/row": 10**6}, {"test/label": 1}, None])
def test_predictions_that_do_not_fit_the_plan_are_refused(
    cache: Cache, change: dict[str, int] | None
) -> None:
    folder = _predicted(cache, "knn-aaaaaaaa", _right(1000, range(100)))
    record = runs.read_run(folder)
    arrays: dict[str, Any] = runs.read_predictions(folder, record)
    if change is None:
        del arrays["test/proba"]
    else:
        arrays = {key: array + change.get(key, 0) for key, array in arrays.items()}
    facts = {key: value for key, value in record.items() if key not in ("format", "files")}
    runs.write_run(folder, facts, b"", [], arrays)
    with pytest.raises(DamagedError, match=r"does not fit the plan|lacks"):
        compare([folder])


def test_the_same_from_python(tmp_path: Path) -> None:
    import featcache

    cache = separable_cache(tmp_path)
    names = [
        featcache.train_head(cache, head, calibrate=True, features_dir=tmp_path).record["run"]
        for head in ("ridge", "knn")
    ]
    found = featcache.compare(*names, features_dir=tmp_path)
    assert [row["run"] for row in found["runs"]] == names and found["split"] == "val"
    assert featcache.compare(*names, split="val", features_dir=tmp_path) == found

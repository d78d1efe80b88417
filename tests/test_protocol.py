"""Learning curves, folds, searches over ranges, and calibration of what a sweep chose."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featcache
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run
from featcache.errors import HeadError, OptionError
from featcache.store.cache import Cache
from featcache.training import fit, runs
from featcache.training.compare import compare
from featcache.training.evaluate import evaluate
from featcache.training.fit import Training
from featcache.training.grid import Range, drawn, parse
from featcache.training.ledger import Ledger
from featcache.training.pace import Pace
from featcache.training.subsets import Draw, Fold, Size, from_record, to_record
from featcache.training.sweep import News, Sweep, sweep
from tests.kit_caches import empty_cache, fill, separable_cache

QUICK = {"epochs": 4, "patience": None}
_LABELS = st.lists(st.integers(0, 4), min_size=4, max_size=80).map(np.array)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return separable_cache(tmp_path)


def _folder(cache: Cache, record: Any) -> Path:
    return runs.folder_of(cache.path, record["run"])


# --- which rows ---


@given(_LABELS, st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_so_many_rows_of_each_class_are_drawn(labels: Any, count: int, trial: int, seed: int) -> None:
    found = Draw(Size(count), trial, seed).positions(labels)
    assert np.array_equal(found, np.unique(found))
    there = np.bincount(labels)
    assert np.array_equal(np.bincount(labels[found]), np.minimum(there, count))
    more = Draw(Size(count + 3), trial, seed).positions(labels)
    assert set(found.tolist()) <= set(more.tolist()), "a smaller size's rows are among a larger one's"


@given(_LABELS, st.floats(0.001, 1))
def test_a_fraction_is_taken_of_each_class(labels: Any, fraction: float) -> None:
    found = np.bincount(labels[Draw(Size(None, fraction)).positions(labels)])
    for there, taken in zip(np.bincount(labels).tolist(), found.tolist(), strict=True):
        assert taken == (max(1, int(fraction * there + 0.5)) if there else 0)


def test_draws_depend_on_seed_and_trial_alone() -> None:
    labels = np.arange(300) % 3
    draws = {(t, s): Draw(Size(5), t, s).positions(labels).tolist() for t in range(3) for s in range(2)}
    assert len({tuple(rows) for rows in draws.values()}) == 6
    other = np.concatenate([labels, np.full(50, 7)])  # another class changes nothing for the first three
    for (trial, seed), rows in draws.items():
        again = Draw(Size(5), trial, seed).positions(other)
        assert again[again < 300].tolist() == rows


@given(_LABELS, st.integers(2, 4), st.integers(0, 3))
def test_folds_share_the_rows_out(labels: Any, folds: int, seed: int) -> None:
    parts = [Fold(number, folds, seed).positions(labels) for number in range(folds)]
    held = np.concatenate([part[1] for part in parts])
    assert np.array_equal(np.sort(held), np.arange(len(labels)))
    sizes = [len(part[1]) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for train, own in parts:
        assert np.array_equal(np.sort(np.concatenate([train, own])), np.arange(len(labels)))
    for label in np.unique(labels):
        counts = [int((labels[part[1]] == label).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_subsets_survive_their_record() -> None:
    for subset in (None, Draw(Size(5), 2, 1), Draw(Size(None, 0.1)), Fold(1, 5, 3)):
        assert from_record(json.loads(json.dumps(to_record(subset)))) == subset
    assert str(Draw(Size(5), 2)) == "5 per class, trial 2" and str(Fold(1, 5, 3)) == "fold 1 of 5, seed 3"
    assert str(Draw(Size(None, 0.015), 0, 4)) == "1.5 %, trial 0, seed 4"


@pytest.mark.parametrize("given", [(None, None), (3, 0.5), (0, None), (None, 0.0), (None, 1.1)])
def test_sizes_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(OptionError):
        Size(*given)


def test_more_folds_than_rows_are_refused(tmp_path: Path) -> None:
    bare = fill(empty_cache(tmp_path, {"train": 4}))
    with pytest.raises(OptionError, match="4 training rows cannot make 5 folds"):
        sweep(bare, Sweep(Training("ridge"), {}, folds=5))


# --- learning curves ---


def test_a_learning_curve(cache: Cache) -> None:
    grid = parse("mlp", ["lr=1e-3,1e-2", "hidden=8"])
    asked = Sweep(Training("mlp", QUICK), grid, sizes=[Size(2), Size(20), Size(None, 1.0)], trials=3)
    swept = sweep(cache, asked)
    assert (swept.heads, swept.found, swept.together) == (2 * (3 + 3 + 1), 0, 2)
    assert [(str(p.size), p.rows, p.trials) for p in swept.curve] == [
        ("2 per class", 6, 3), ("20 per class", 60, 3), ("100 %", 192, 1)
    ]  # fmt: skip
    for point in swept.curve:
        means = [line.mean("val", "accuracy") for line in point.configurations]
        assert means == sorted(means, reverse=True) and len(means) == 2  # type: ignore[type-var]
        accuracies = [record["val"]["accuracy"] for record in point.best.records]
        assert point.best.mean("val", "accuracy") == pytest.approx(np.mean(accuracies))
        if point.trials > 1:
            assert point.best.deviation("val", "accuracy") == pytest.approx(np.std(accuracies, ddof=1))
    assert swept.best["subset"] is None and swept.best["test"] is None
    # All heads of a trial see the same rows, whatever their options, and the whole split validates.
    one, other = (line.records[1] for line in swept.curve[0].configurations)
    assert one["subset"] == other["subset"] and one["params"]["lr"] != other["params"]["lr"]
    assert one["train_rows"] == 6 and one["val"]["n"] == 48


def test_a_head_of_a_curve_is_the_one_trained_alone_on_these_rows(cache: Cache) -> None:
    asked = Sweep(Training("linear", QUICK), parse("linear", ["lr=1e-3,1e-2"]), sizes=[Size(4)], trials=2)
    table, val = cache.table("train"), cache.table("val")
    for configuration in sweep(cache, asked).configurations:
        for trial, record in enumerate(configuration.records):
            rows = Draw(Size(4), trial).positions(table.y)
            params = {**QUICK, **configuration.values}
            head = featcache.LinearHead(**params).fit(table.X[rows], table.y[rows], val.X, val.y)
            assert record["val"]["accuracy"] == head.score(val.X, val.y)
            training = Training("linear", params, subset=from_record(record["subset"]))
            alone = fit.train(cache, training).record
            assert alone["val"]["log_loss"] == pytest.approx(record["val"]["log_loss"], rel=1e-4)
            assert (alone["subset"], alone["train_rows"]) == (record["subset"], 12)


def test_seeds_and_trials_are_told_apart(cache: Cache) -> None:
    asked = Sweep(Training("linear", QUICK), {}, seeds=2, sizes=[Size(2)], trials=3)
    (point,) = sweep(cache, asked).curve
    assert len(point.best.records) == 6 and point.trials == 3
    by_trial = np.array([record["val"]["accuracy"] for record in point.best.records]).reshape(3, 2)
    assert point.best.deviation("val", "accuracy") == pytest.approx(by_trial.mean(axis=1).std(ddof=1))


def test_a_curve_tests_the_chosen_heads_of_every_size_alone(cache: Cache) -> None:
    grid = parse("logreg", ["C=1e-6,.1"])
    swept = sweep(cache, Sweep(Training("logreg", test=True), grid, sizes=[Size(1), Size(9)], trials=2))
    tested = {row["run"] for row in Ledger(cache.path.parent).runs() if row["test_accuracy"] is not None}
    assert tested == {record["run"] for point in swept.curve for record in point.best.records}
    assert all(point.best.mean("test", "accuracy") is not None for point in swept.curve)
    assert swept.best["test"] is not None


def test_a_killed_curve_goes_on_and_a_larger_one_takes_over_what_there_is(cache: Cache) -> None:
    def kill(news: News) -> None:
        if news.done == 2:
            raise KeyboardInterrupt

    asked = Sweep(Training("ridge"), parse("ridge", ["alpha=1,10"]), sizes=[Size(2)], trials=2)
    with pytest.raises(KeyboardInterrupt):
        sweep(cache, asked, kill)
    assert len(Ledger(cache.path.parent).runs()) == 2 and Ledger(cache.path.parent).check().differing == {}
    assert sweep(cache, asked).found == 2
    more = Sweep(Training("ridge"), parse("ridge", ["alpha=1,10"]), sizes=[Size(2), Size(3)], trials=3)
    assert (sweep(cache, more).found, sweep(cache, Sweep(Training("ridge"), {})).found) == (4, 0)
    seeded = Sweep(Training("ridge"), parse("ridge", ["alpha=1,10"]), sizes=[Size(2)], trials=2, seed=1)
    assert sweep(cache, seeded).found == 0


def test_a_run_on_some_rows_is_told_apart_everywhere(cache: Cache) -> None:
    training = Training("ridge", test=True)
    some = fit.train(cache, Training("ridge", test=True, subset=Draw(Size(2), 1)))
    whole = fit.train(cache, training)
    ledger = Ledger(cache.path.parent)
    rows = {row["run"]: row for row in ledger.runs()}
    assert rows[some.record["run"]]["subset"] == "2 per class, trial 1"
    assert rows[some.record["run"]]["train_rows"] == 6 and rows[whole.record["run"]]["subset"] is None
    assert [row["run"] for row in ledger.runs(["subset~per class"])] == [some.record["run"]]
    assert ledger.check().differing == {} and ledger.rebuild() == 2 and ledger.check().differing == {}
    found = compare([some.folder, whole.folder])
    assert [each["subset"] for each in found["runs"]] == ["2 per class, trial 1", None]
    assert any("did not see the same training rows" in note for note in found["notes"])
    assert not any("same training rows" in note for note in compare([whole.folder])["notes"])


def test_a_training_on_some_rows_resumes_on_them(cache: Cache) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.epoch == 2:
            raise Stop

    subset = Draw(Size(5), 1)
    training = Training("linear", QUICK, keep_checkpoints=1, subset=subset)
    with pytest.raises(Stop):
        fit.train(cache, training, fit.Watch(epoch=stop))
    (folder,) = (cache.path / "heads").iterdir()
    resumed = fit.resume(cache.path.parent, folder.name)
    assert resumed.record["subset"] == to_record(subset) and resumed.record["train_rows"] == 15
    alone = fit.train(cache, Training("linear", QUICK, subset=subset))
    assert np.array_equal(resumed.head.coefs_[0], alone.head.coefs_[0])  # type: ignore[attr-defined]


# --- folds ---


def test_cross_validation(cache: Cache) -> None:
    grid = parse("mlp", ["lr=1e-5,1e-2", "hidden=8"])
    swept = sweep(cache, Sweep(Training("mlp", {"epochs": 12}, test=True), grid, folds=4))
    assert swept.heads == 8 and [line.values["lr"] for line in swept.configurations] == [1e-2, 1e-5]
    first, best = swept.configurations[0], swept.best
    accuracies = [record["val"]["accuracy"] for record in first.records]
    assert first.mean("val", "accuracy") == pytest.approx(np.mean(accuracies))
    assert first.deviation("val", "accuracy") == pytest.approx(np.std(accuracies, ddof=1))
    assert {(r["val"]["n"], r["train_rows"]) for r in first.records} == {(60, 180)}
    # The chosen configuration, on all rows, for the mean of the best epochs.
    assert best["train_rows"] == 240 and best["subset"] is None and best["val"] is None
    assert best["params"]["epochs"] == round(np.mean([record["best_epoch"] for record in first.records]))
    assert best["params"]["patience"] is None and best["test"]["accuracy"] > 0.8
    assert best["cv"]["mean"] == first.mean("val", "accuracy") and best["cv"]["n"] == 240
    assert best["cv"]["runs"] == [record["run"] for record in first.records]
    stored = runs.read_predictions(_folder(cache, best), best)
    whole = cache.table("train", val_fraction=0)
    assert np.array_equal(stored["cv/row"], whole.rows) and np.array_equal(stored["cv/label"], whole.y)
    for record in first.records:
        own = runs.read_predictions(_folder(cache, record), record)
        at = np.searchsorted(stored["cv/row"], own["val/row"])
        assert np.array_equal(stored["cv/proba"][at], own["val/proba"])
    assert best["cv"]["accuracy"] == np.mean(stored["cv/proba"].argmax(axis=1) == stored["cv/label"])


def test_a_cross_validation_done_before_is_found(cache: Cache) -> None:
    asked = Sweep(Training("ridge"), parse("ridge", ["alpha=1,10"]), folds=3)
    first, again = sweep(cache, asked), sweep(cache, asked)
    assert (first.found, again.found) == (0, 6) and again.best == first.best
    assert len(Ledger(cache.path.parent).runs()) == 7
    assert sweep(cache, Sweep(Training("ridge"), {"alpha": (1,)}, folds=3, seed=1)).found == 0
    # Neither a fold nor what was trained on all rows is taken for an ordinary head.
    assert sweep(cache, Sweep(Training("ridge"), {"alpha": (1,)})).found == 0


def test_folds_leave_other_numbers_alone(cache: Cache) -> None:
    plain = fit.train(cache, Training("ridge"))
    swept = sweep(cache, Sweep(Training("ridge"), {}, folds=8))
    fold = max(swept.configurations[0].records, key=lambda record: record["val"]["accuracy"])
    ledger = Ledger(cache.path.parent)
    assert [row["run"] for row in ledger.best("val_accuracy")] == [plain.record["run"]]
    assert [row["run"] for row in ledger.best("cv_accuracy")] == [swept.best["run"]]
    folds = [row["subset"] for row in ledger.runs(["subset~fold"], sort="subset")]
    assert folds == [f"fold {i} of 8" for i in range(8)]
    assert ledger.check().differing == {}
    # A fold is evaluated on the rows it held out.
    found = evaluate(_folder(cache, fold))
    assert found["val"]["n"] == 30 == sum(row["support"] for row in found["details"]["val"]["per_class"])
    (accuracy,) = {np.trace(np.array(found["details"]["val"]["confusion"])) / 30}
    assert accuracy == fold["val"]["accuracy"]


def test_heads_are_compared_on_pooled_folds(cache: Cache) -> None:
    one = sweep(cache, Sweep(Training("ridge"), {}, folds=4)).best
    two = sweep(cache, Sweep(Training("knn"), {"k": (1,)}, folds=4)).best
    found = compare([_folder(cache, one), _folder(cache, two)])
    assert found["split"] == "cv" and found["rows"] == 240
    assert [each["accuracy"] for each in found["runs"]] == [one["cv"]["accuracy"], two["cv"]["accuracy"]]


def test_a_configuration_that_fails_on_a_fold_is_not_chosen(cache: Cache) -> None:
    grid = parse("mlp", ["lr=1e30,1e-2"])
    swept = sweep(cache, Sweep(Training("mlp", QUICK), grid, folds=2))
    assert swept.best["params"]["lr"] == 1e-2 and swept.failed == 2
    with pytest.raises(HeadError, match="None of the heads could be trained"):
        sweep(cache, Sweep(Training("mlp", QUICK), {"lr": (1e30,)}, folds=2))


def test_folds_with_several_seeds(cache: Cache) -> None:
    swept = sweep(cache, Sweep(Training("linear", {**QUICK, "seed": 3}), {}, seeds=2, folds=2))
    records = swept.configurations[0].records
    assert [(r["subset"]["fold"], r["params"]["seed"]) for r in records] == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert swept.best["params"]["seed"] == 3 and len(swept.best["cv"]["runs"]) == 4


# --- ranges, and what searches them ---


@pytest.mark.parametrize(
    ("kind", "text", "expected", "log"),
    [
        ("mlp", "lr=1e-5..1e-2", Range(1e-5, 1e-2), True),
        ("mlp", "lr=1e-3 .. 1e-2", Range(1e-3, 1e-2), False),
        ("mlp", "weight_decay=0..1", Range(0, 1), False),
        ("mlp", "dropout=.1...5", Range(0.1, 0.5), False),
        ("mlp", "epochs=2..300", Range(2, 300, whole=True), True),
        ("knn", "k=1..50", Range(1, 50, whole=True), False),
    ],
)
def test_ranges_are_read(kind: str, text: str, expected: Range, log: bool) -> None:
    (found,) = parse(kind, [text]).values()
    assert found == expected and found.log == log
    for share in (0.0, 0.31, 0.5, 1.0):
        value = found.at(share)
        assert found.low <= value <= found.high and (not found.whole or value == int(value))
    middle = found.at(0.5)
    exact = (found.low * found.high) ** 0.5 if log else (found.low + found.high) / 2
    assert middle == pytest.approx(exact, rel=1e-3, abs=0.5 if found.whole else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=1e-2..1e-5", "ends before it begins"),
        ("lr=1..1", "ends before it begins"),
        ("lr=0..1", "cannot be 0: expected a number above 0"),
        ("lr=a..b", "cannot be 'a'"),
        ("epochs=1..2.5", "cannot be 2.5"),
        ("optimizer=adam..adamw", "has no ranges: 'adam' is no number"),
    ],
)
def test_ranges_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises((OptionError, HeadError), match=message):
        parse("mlp", [text])


def test_points_of_ranges_are_drawn_evenly_and_the_same_ones_each_time() -> None:
    grid = parse("mlp", ["lr=1e-5..1e-1", "hidden=8/50,20"])
    points = drawn(grid, 400)
    assert points == drawn(grid, 400) != drawn(grid, 400, seed=1)
    logs = np.log10([point["lr"] for point in points])
    assert np.allclose(np.histogram(logs, bins=4, range=(-5, -1))[0] / 400, 0.25, atol=0.07)
    assert 0.4 < np.mean([point["hidden"] == (8,) for point in points]) < 0.6
    assert len(drawn(parse("knn", ["k=1..3"]), 50)) == 3, "there are no more different ones"


def test_a_random_sweep_over_a_range(cache: Cache) -> None:
    grid = parse("linear", ["lr=1e-4..1e-1"])
    asked = Sweep(Training("linear", QUICK), grid, random=5)
    swept = sweep(cache, asked)
    assert (swept.heads, swept.together, sweep(cache, asked).found) == (5, 5, 5)
    with pytest.raises(OptionError, match=r"lr is a range, 0\.0001 to 0\.1, logarithmic scale"):
        sweep(cache, Sweep(Training("linear", QUICK), grid))


def test_optuna_suggests_and_goes_on_where_it_was(cache: Cache) -> None:
    pytest.importorskip("optuna")
    grid = parse("linear", ["lr=1e-6..1e-1", "optimizer=adam,adamw"])
    asked = Sweep(Training("linear", QUICK), grid, optuna=20, seed=3)
    told: list[News] = []

    def kill(news: News) -> None:
        told.append(news)
        if news.done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(cache, asked, kill)
    assert {news.total for news in told} == {20} and max(news.alive for news in told) == 8
    swept = sweep(cache, asked)
    assert swept.found == 8 and swept.heads == 20
    assert sweep(cache, asked).found == 20, "the same points are suggested again"
    rates = [r["params"]["lr"] for line in swept.configurations for r in line.records]
    assert len(set(rates)) == 20 and all(1e-6 <= lr <= 1e-1 for lr in rates)
    # It learns: later suggestions lie where heads are better than the first ones, which are drawn evenly.
    order = sorted((r for c in swept.configurations for r in c.records), key=lambda r: r["created"])
    assert swept.best["val"]["accuracy"] > np.median([r["val"]["accuracy"] for r in order])


def test_optuna_with_folds_seeds_failures_and_repeated_points(cache: Cache) -> None:
    pytest.importorskip("optuna")
    grid = {"lr": (1e-2, 1e30)}
    swept = sweep(cache, Sweep(Training("mlp", QUICK), grid, optuna=6, folds=2))
    assert len(swept.configurations) == 2 and swept.heads == 4 and swept.failed == 2
    knn = sweep(cache, Sweep(Training("knn"), {"k": Range(1, 30, whole=True)}, optuna=4))
    assert knn.found == 0 and all(isinstance(line.values["k"], int) for line in knn.configurations)


def test_optuna_is_asked_for_by_name_where_it_is_missing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(OptionError, match=r"pip install 'featcache\[optuna\]'"):
        sweep(cache, Sweep(Training("linear"), {"lr": Range(1e-4, 1e-2)}, optuna=3))
    for asked in (
        Sweep(Training("linear"), {}, optuna=3),
        Sweep(Training("linear"), {"lr": (1e-2,)}, optuna=3, random=3),
        Sweep(Training("linear"), {"lr": (1e-2,)}, optuna=3, sizes=[Size(1)]),
    ):
        with pytest.raises(OptionError, match="Optuna suggests values of a grid"):
            sweep(cache, asked)


# --- time left, and stopping ---


def test_the_time_left_follows_the_work() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert pace.seconds_left() is None
    pace.expect(10)
    now[0] += 5
    assert pace.seconds_left() is None and pace.seconds_left(running=2) == 20
    pace.finish(5)
    assert pace.seconds_left() == 5 and pace.seconds_left(unknown=1.0) == 15
    pace.finish(5)
    assert pace.seconds_left() == 0


def test_an_interrupt_leaves_what_is_finished_in_the_ledger(cache: Cache) -> None:
    """A real process, a real signal."""
    rates = ",".join(f"{lr}e-4" for lr in range(1, 400))
    arguments = ["sweep", "--features-dir", str(cache.path.parent), "--cache", "easy", "--head", "linear"]
    arguments += ["--epochs", "1", "--grid", f"lr={rates}", "--memory", "1e-6", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "featcache", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background are born with the signal ignored, and so is this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list(cache.path.glob(f"heads/*/{runs.RUN}"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and "Traceback" not in err, err
    assert "Stopped.\nThe runs that were finished are kept" in err
    ledger = Ledger(cache.path.parent)
    there = len(list(cache.path.glob(f"heads/*/{runs.RUN}")))
    assert 3 <= there < 399
    # A signal between a run's last file and its line in the ledger leaves one line to be mended.
    assert len(ledger.check().differing) <= 1 and len(ledger.runs()) >= there - 1


# --- calibration, and the ledger's columns ---


def test_the_head_chosen_is_calibrated_as_a_copy(cache: Cache) -> None:
    grid = parse("logreg", ["C=1e-4,.1"])
    asked = Sweep(Training("logreg", test=True, calibrate=True), grid)
    best, again = sweep(cache, asked).best, sweep(cache, asked).best
    assert best == again and len(Ledger(cache.path.parent).runs()) == 3
    plain = fit.train(cache, Training("logreg", {"C": best["params"]["C"]}, calibrate=True)).record
    assert best["calibration"]["temperature"] == pytest.approx(plain["calibration"]["temperature"])
    row = next(row for row in Ledger(cache.path.parent).runs() if row["run"] == best["run"])
    assert row["temperature"] == best["calibration"]["temperature"]
    assert row["val_ece"] == pytest.approx(best["calibration"]["val"]["ece_after"])
    assert row["val_ece_before"] == best["calibration"]["val"]["ece_before"]
    assert row["test_ece_before"] == best["calibration"]["test"]["ece_before"]
    assert Ledger(cache.path.parent).check().differing == {}
    assert sweep(cache, Sweep(Training("logreg"), grid)).best["calibration"] is None


def test_the_best_by_calibration_error(cache: Cache) -> None:
    for k in (1, 20):
        fit.train(cache, Training("knn", {"k": k}))
    ledger = Ledger(cache.path.parent)
    least = min(ledger.runs(), key=lambda row: row["val_ece"])
    assert ledger.best("ece") == [least] == ledger.best("val_ece")
    with pytest.raises(OptionError, match="Unknown measure 'cece'"):
        ledger.best("cece")


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_ledger_is_made_anew(cache: Cache, version: int) -> None:
    first = fit.train(cache, Training("ridge")).record
    path = cache.path.parent / "ledger.sqlite"
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE runs (run TEXT PRIMARY KEY, head TEXT)")
        db.execute("INSERT INTO runs VALUES ('gone-00000000', 'gone')")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    ledger = Ledger(cache.path.parent)
    (row,) = ledger.runs()
    assert (row["run"], row["train_rows"]) == (first["run"], 192) and ledger.check().differing == {}


def test_what_will_take_long_is_said_once_and_before_it_starts(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.heads.svm._MANY", 100)
    told: list[Any] = []
    grid = {"C": (1.0, 2.0), "gamma": (0.1, 0.2)}
    sweep(cache, Sweep(Training("svm", {"kernel": "rbf"}), grid), told.append, told.append)
    texts = [at for at, news in enumerate(told) if isinstance(news, str)]
    assert len(texts) == 1 and "svm with the rbf kernel on 192 rows" in told[texts[0]]
    assert all(news.done == 0 for news in told[: texts[0]])
    fit.train(cache, Training("svm", {"kernel": "rbf"}), fit.Watch(warns=told.append))
    assert "on 192 rows" in told[-1]
    told.clear()
    sweep(cache, Sweep(Training("svm", {"kernel": "rbf"}), grid), told.append, told.append)
    assert not any(isinstance(news, str) for news in told), "nothing is left to train"


# --- from Python and the command line ---


def test_from_python(cache: Cache) -> None:
    swept = featcache.sweep(cache, "ridge", {"alpha": [1, 10]}, few_shot=[1, 2], fractions=[0.5], trials=2)
    assert [str(point.size) for point in swept.curve] == ["1 per class", "2 per class", "50 %"]
    assert featcache.sweep(cache, "ridge", {"alpha": [1, 10]}, cv=3).best["cv"]["folds"] == 3
    assert featcache.sweep(cache, "ridge", {"alpha": Range(1, 1000)}, random=3, draw_seed=1).heads == 3


@pytest.fixture
def cli(cache: Cache, capfd: pytest.CaptureFixture[str]) -> Any:
    def called(command: str, *arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([command, "--features-dir", str(cache.path.parent), *arguments])
        return code, *capfd.readouterr()

    return called


def test_a_curve_on_the_command_line(cli: Any) -> None:
    options = ["--cache", "easy", "--head", "logreg", "--grid", "C=.01,1", "--few-shot", "1,5"]
    options += ["--fractions", ".5,1", "--trials", "2", "--test"]
    code, out, err = cli("sweep", *options)
    lines = [line.split("  ") for line in out.splitlines()]
    assert code == 0 and lines[0][0] == "training rows" and len(lines) == 2 + 4, out
    assert out.splitlines()[0].split()[-7:] == ["accuracy", "±", "sd", "test", "accuracy", "±", "sd"][
        -7:
    ] or ("test accuracy" in out)
    assert out.splitlines()[2].startswith("1 per class") and out.splitlines()[-1].startswith("100 %")
    assert "14 heads in" in err
    code, out, _ = cli("sweep", *options, "--json")
    found = json.loads(out)
    assert code == 0 and set(found) == set(KEYS["sweep"]) and len(found["curve"]) == 4
    for point in found["curve"]:
        assert set(point) == set(KEYS["a size of sweep --few-shot or --fractions"])
        assert point["test_accuracy"] is not None and len(point["runs"]) == point["trials"]
    assert found["found"] == 14 and set(found["best"]) == set(KEYS["train-head"])
    code, out, _ = cli("runs")
    assert code == 0 and "subset" in out.splitlines()[0] and "5 per class, trial 1" in out


def test_folds_and_searches_on_the_command_line(cli: Any) -> None:
    code, out, err = cli("sweep", "--cache", "easy", "--head", "ridge", "--grid", "alpha=1,10", "--cv", "3")
    assert code == 0 and "cv accuracy" in out.splitlines()[0] and "trained on all 240 rows" in out
    code, out, err = cli(
        "sweep", "--cache", "easy", "--head", "ridge", "--grid", "alpha=.1..1000", "--random", "4"
    )
    assert code == 0 and "alpha: 0.1 to 1000, logarithmic scale" in err and "4 heads" in err
    code, out, _ = cli("runs", "--best-by", "ece", "--json")
    assert code == 0 and len(json.loads(out)["runs"]) == 1
    code, out, err = cli("sweep", "--cache", "easy", "--head", "ridge", "--calibrate")
    assert code == 0 and "temperature" in out and "ECE" in out
    code, out, _ = cli("runs")
    assert "val_ece_before" in out.splitlines()[0] and "cv_accuracy" in out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--few-shot", "1,x"], 2, "no list of numbers such as 1,5,10,50"),
        (["--few-shot", "0"], 1, "at least 1 row a class, got 0"),
        (["--fractions", "1.5"], 1, "A fraction lies above 0 and is at most 1, got 1.5"),
        (["--cv", "1"], 2, "cv"),
        (["--cv", "3", "--few-shot", "1"], 1, "Leave --cv out"),
        (["--grid", "C=.1..1"], 1, "Say how many to try with --random N or --optuna N"),
    ],
)
def test_wrong_input_gets_one_clear_sentence(cli: Any, arguments: list[str], code: int, message: str) -> None:
    got, out, err = cli("sweep", "--cache", "easy", "--head", "logreg", *arguments)
    assert (got, out) == (code, "") and message in err and "Traceback" not in err

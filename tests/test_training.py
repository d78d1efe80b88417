"""Training on a cache: runs, the ledger, checkpoints, evaluation, refusal."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import atomic
from featcache.costs import Costs
from featcache.errors import CacheError, DamagedError, HeadError, OptionError, RunError
from featcache.heads import saving
from featcache.heads.catalogue import KINDS
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.training import checkpoints, fit, runs
from featcache.training.evaluate import evaluate
from featcache.training.fit import Training, Watch, resume, train
from featcache.training.ledger import Check, Ledger
from tests import kit_caches
from tests.kit_caches import empty_cache, fill, separable_cache

QUICK = {"epochs": 6, "patience": None}


def hard_cache(folder: Path) -> Cache:
    """A cache whose classes overlap, so that heads err."""
    cache = empty_cache(folder, {"train": 600, "test": 400}, {"flatten": 8}, rows_per_shard=200)
    centres = np.random.default_rng(0).normal(size=(3, 8)) * 0.6
    for part in cache.todo():
        labels = cache.plan.labels[part.first : part.stop]
        noise = np.random.default_rng(part.first).normal(size=(len(part), 8))
        cache.commit(part, {"flatten": (centres[labels] + noise).astype(np.float16)})
    cache.seal()
    return cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return separable_cache(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_stored_whole_and_loads_again(cache: Cache, kind: str) -> None:
    done = train(cache, Training(kind, test=True))
    record = runs.read_run(done.folder)
    assert record == runs.read_run(runs.find_run(cache.path.parent, record["run"][:9]))
    if kind != "dummy":
        assert record["val"]["accuracy"] > 0.8 and record["test"]["accuracy"] > 0.8  # by chance: .33
    assert record["fit_seconds"] > 0 and record["peak_rss_bytes"] > 10**7
    _check_costs(record, (done.folder / runs.HEAD).stat().st_size)
    head = saving.loads(runs.read_file(done.folder, record, runs.HEAD))
    table = cache.table("test")
    assert np.array_equal(head.predict(table.X), done.head.predict(table.X))
    stored = runs.read_predictions(done.folder, record)
    assert np.array_equal(stored["test/row"], table.rows)
    assert np.allclose(stored["test/proba"].sum(1), 1, atol=1e-5)
    assert (stored["test/proba"].argmax(1) == stored["test/label"]).mean() == record["test"]["accuracy"]
    row = Ledger(cache.path.parent).runs([f"run={record['run']}"])[0]
    assert row["val_accuracy"] == record["val"]["accuracy"] and row["params"] == record["params"]


def _check_costs(record: dict[str, Any], size: int) -> None:
    costs = Costs.from_record(record["costs"])
    assert costs.fit_rows == record["train_rows"] * (record["epochs"] or 1)
    assert costs.predict_rows == record["val"]["n"] + record["test"]["n"] == 108
    seconds = record["val"]["predict_seconds"] + record["test"]["predict_seconds"]
    assert costs.predict_seconds == pytest.approx(seconds, abs=2e-4) and costs.together == 1
    assert costs.disk_bytes == size and costs.reads == "features" and costs.peak_gpu_bytes is None
    assert (costs.ram_before_bytes or 0) <= (costs.peak_ram_bytes or 0) == record["peak_rss_bytes"]
    if record["head"] == "ridge":  # 12 columns and a bias for 3 classes; mean and scale
        assert (costs.parameters_trained, costs.parameters) == (39, 63)


def test_a_run_without_costs_is_known_as_far_as_it_goes(cache: Cache) -> None:
    done = train(cache, Training("ridge"))
    record = runs.read_run(done.folder)
    del record["costs"]
    atomic.write(done.folder / runs.RUN, records.to_bytes(record))
    ledger = Ledger(cache.path.parent)
    ledger.rebuild()
    row = ledger.runs()[0]
    assert row["peak_rss_bytes"] == record["peak_rss_bytes"] and row["rss_since"] == "process start"
    assert row["images_per_second"] > 0 and row["disk_bytes"] is None and row["parameters"] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fraction", "strangers"), [(1 / 3, 40), (0.5, 40), (0.1, 0)])
def test_classes_that_validation_alone_holds_do_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fraction: float, strangers: int
) -> None:
    """As a folder sorted by class gives them with the last rows for validation."""
    mixed = kit_caches.plan({"train": 120})
    by_class = Plan(mixed.ids, np.sort(mixed.labels), mixed.splits, mixed.hashes)
    monkeypatch.setattr(kit_caches, "plan", lambda counts: by_class)
    cache = fill(empty_cache(tmp_path, {"train": 120}))
    record = train(cache, Training(kind, val_fraction=fraction, split_mode="last")).record
    notes = [note for note in record["notes"] if "without training rows (2)" in note]
    wanted = [["40", "of", str(record["val"]["n"])]] if strangers else []
    assert [note.split()[:3] for note in notes] == wanted
    assert record["val"]["accuracy"] <= 1 - strangers / record["val"]["n"] + 1e-9


def test_the_test_split_is_not_read_unless_asked_for(cache: Cache) -> None:
    shard = next((cache.path / "shards").glob("test-*"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    assert train(cache, Training("ridge")).record["test"] is None
    with pytest.raises(DamagedError, match=shard.name):
        train(cache, Training("ridge", test=True))


def test_the_split_options_reach_the_head(cache: Cache) -> None:
    record = train(cache, Training("ridge", val_fraction=0.5, split_seed=7, split_mode="last")).record
    assert record["train_rows"] == 120 and record["val"]["n"] == 120
    assert record["split"] == {"val_fraction": 0.5, "split_seed": 7, "split_mode": "last"}


def test_without_validation_rows_a_head_still_trains(cache: Cache) -> None:
    record = train(cache, Training("mlp", QUICK, val_fraction=0)).record
    assert record["val"] is None and record["train_rows"] == 240 and record["epochs"] == 6


def test_classes_that_train_lacks_get_no_probability(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, {"train": 30, "test": 9}))
    few = cache.table("train", split_mode="last")
    head = fit.create("knn", k=1).fit(few.X[few.y != 1], few.y[few.y != 1])
    found = fit.predict(head, cache.table("test"))
    assert found.proba.shape == (9, 3) and found.proba[:, 1].sum() == 0


def test_evaluate_adds_the_test_metrics_to_the_run_and_the_ledger(cache: Cache) -> None:
    done = train(cache, Training("logreg"))
    found = evaluate(done.folder)
    assert found["val"]["accuracy"] == done.record["val"]["accuracy"]
    assert found["details"]["test"]["confusion"] and len(found["details"]["test"]["per_class"]) == 3
    assert sum(map(sum, found["details"]["test"]["confusion"])) == 60
    assert runs.read_run(done.folder)["test"]["accuracy"] == found["test"]["accuracy"]
    assert Ledger(cache.path.parent).runs()[0]["test_accuracy"] == found["test"]["accuracy"]


def test_a_head_refuses_a_cache_it_was_not_trained_on(cache: Cache, tmp_path: Path) -> None:
    done = train(cache, Training("ridge"))
    other = separable_cache(tmp_path / "other", width=13)
    target = other.path / "heads" / done.folder.name
    target.parent.mkdir()
    done.folder.rename(target)
    with pytest.raises(HeadError, match="columns: expected 12, got 13"):
        evaluate(target)


@pytest.mark.parametrize("name", [runs.HEAD, runs.PREDICTIONS, runs.RUN])
def test_a_damaged_run_is_found(cache: Cache, name: str) -> None:
    done = train(cache, Training("ridge"))
    content = bytearray((done.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (done.folder / name).write_bytes(content)
    with pytest.raises(DamagedError, match=name):
        record = runs.read_run(done.folder)
        runs.read_predictions(done.folder, record)
        evaluate(done.folder)


def test_unknown_things_are_refused_before_anything_is_read(cache: Cache) -> None:
    with pytest.raises(HeadError, match=rf"Unknown head 'lin'. Known: {', '.join(sorted(KINDS))}\."):
        train(cache, Training("lin"))
    with pytest.raises(HeadError, match="Unknown option of head 'ridge'"):
        train(cache, Training("ridge", {"lr": 1}))
    with pytest.raises(OptionError, match="not trained by epochs"):
        train(cache, Training("ridge", keep_checkpoints=3))
    assert not (cache.path / "heads").exists()


def test_without_a_test_split_test_is_refused(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, {"train": 30}))
    with pytest.raises(OptionError, match="no test split"):
        train(cache, Training("ridge", test=True))


# --- calibration ---


def test_a_calibrated_run_says_what_it_gained(tmp_path: Path) -> None:
    cache = hard_cache(tmp_path)
    plain = train(cache, Training("svm", test=True))
    done = train(cache, Training("svm", test=True, calibrate=True))
    found = done.record["calibration"]
    assert plain.record["calibration"] is None
    assert found["temperature"] == done.head.temperature_
    for split in ("val", "test"):
        assert found[split]["ece_before"] == pytest.approx(plain.record[split]["ece"], abs=1e-6)
        assert found[split]["ece_after"] == pytest.approx(done.record[split]["ece"], abs=1e-6)
        assert found[split]["ece_after"] < found[split]["ece_before"]
        assert done.record[split]["accuracy"] == plain.record[split]["accuracy"]
        assert done.record[split]["log_loss"] < plain.record[split]["log_loss"]
    loaded = saving.loads(runs.read_file(done.folder, done.record, runs.HEAD))
    stored = runs.read_predictions(done.folder, done.record)
    assert np.array_equal(loaded.predict_proba(cache.table("test").X), stored["test/proba"])


def test_evaluate_adds_what_calibration_gained_on_test(tmp_path: Path) -> None:
    cache = hard_cache(tmp_path)
    whole = train(cache, Training("ridge", test=True, calibrate=True)).record["calibration"]
    done = train(cache, Training("ridge", calibrate=True))
    assert done.record["calibration"] == {**whole, "test": None}
    evaluate(done.folder)
    assert runs.read_run(done.folder)["calibration"] == whole
    assert evaluate(train(cache, Training("ridge")).folder)["calibration"] is None


def test_a_run_of_before_calibration_was_known_is_evaluated(cache: Cache) -> None:
    done = train(cache, Training("ridge"))
    facts = {key: v for key, v in done.record.items() if key not in ("format", "files", "calibration")}
    stored = runs.read_predictions(done.folder, done.record)
    runs.write_run(done.folder, facts, (done.folder / runs.HEAD).read_bytes(), [], stored)
    assert evaluate(done.folder)["test"]["accuracy"] > 0.8


def test_calibration_needs_validation_rows(cache: Cache) -> None:
    with pytest.raises(OptionError, match="no validation rows to calibrate on"):
        train(cache, Training("ridge", val_fraction=0, calibrate=True))
    assert not (cache.path / "heads").exists()


def test_a_resumed_run_is_calibrated_as_it_was_asked_to_be(cache: Cache) -> None:
    asked = Training("linear", {"epochs": 3, "patience": None}, keep_checkpoints=1, calibrate=True)
    longer = resume(cache.path.parent, train(cache, asked).record["run"], epochs=5)
    straight = train(cache, Training("linear", {"epochs": 5, "patience": None}, calibrate=True))
    assert longer.record["calibration"] == straight.record["calibration"] is not None


# --- checkpoints ---


class Stop(Exception):
    pass


def test_the_last_epochs_are_kept_and_a_stopped_run_resumes_to_the_same_weights(cache: Cache) -> None:
    asked = Training("mlp", {"epochs": 9, "patience": 4, "dropout": 0.2}, keep_checkpoints=3)
    whole = train(cache, asked)
    assert [path.name for path in checkpoints.paths(whole.folder)] == [
        f"epoch-{epoch:06d}.safetensors" for epoch in (7, 8, 9)
    ]

    def stop(report: object) -> None:
        if report.epoch == 5:  # type: ignore[attr-defined]
            raise Stop

    with pytest.raises(Stop):
        train(cache, asked, Watch(epoch=stop))
    (name,) = {path.name for path in (cache.path / "heads").iterdir()} - {whole.folder.name}
    with pytest.raises(RunError, match="No run"):
        runs.find_run(cache.path.parent, name)  # unfinished: nobody sees it yet
    epochs: list[int] = []
    resumed = resume(cache.path.parent, name, watch=Watch(epoch=lambda report: epochs.append(report.epoch)))
    assert epochs == [6, 7, 8, 9]
    for a, b in zip(resumed.head.coefs_, whole.head.coefs_, strict=True):
        assert np.array_equal(a, b)
    assert resumed.record["val"]["accuracy"] == whole.record["val"]["accuracy"]
    assert resumed.record["params"] == whole.record["params"]


def test_a_finished_run_can_be_trained_for_longer(cache: Cache) -> None:
    asked = Training("linear", {"epochs": 3, "patience": None}, keep_checkpoints=1)
    short = train(cache, asked)
    with pytest.raises(RunError, match="is finished"):
        resume(cache.path.parent, short.record["run"])
    longer = resume(cache.path.parent, short.record["run"], epochs=5)
    straight = train(cache, Training("linear", {"epochs": 5, "patience": None}))
    assert np.array_equal(longer.head.coefs_[0], straight.head.coefs_[0])


def test_a_damaged_checkpoint_costs_one_epoch(cache: Cache) -> None:
    asked = Training("linear", {"epochs": 3, "patience": None}, keep_checkpoints=2)
    done = train(cache, asked)
    newest = checkpoints.paths(done.folder)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    state = checkpoints.latest(done.folder)
    assert state is not None and state.epoch == 2
    checkpoints.paths(done.folder)[0].write_bytes(b"")
    with pytest.raises(DamagedError, match="No checkpoint"):
        checkpoints.latest(done.folder)


def test_a_run_without_checkpoints_cannot_be_resumed(cache: Cache) -> None:
    done = train(cache, Training("linear", QUICK))
    with pytest.raises(RunError, match="kept no checkpoints"):
        resume(cache.path.parent, done.record["run"])


# --- the ledger ---


def test_the_ledger_filters_sorts_and_can_be_made_anew(cache: Cache) -> None:
    for kind, params in (("ridge", {}), ("knn", {"k": 3}), ("knn", {"k": 5})):
        train(cache, Training(kind, params))
    ledger = Ledger(cache.path.parent)
    before = ledger.runs()
    assert len(ledger.runs(["head=knn"])) == 2
    assert len(ledger.runs(["head!=knn", "val_accuracy>.1", "cache~easy"])) == 1
    best = [row["val_accuracy"] for row in ledger.runs(sort="-val_accuracy")]
    assert best == sorted(best, reverse=True)
    assert len(ledger.runs(limit=2)) == 2
    assert [row["params"]["k"] for row in ledger.runs(["params.k>3"])] == [5]
    assert [row["params"]["k"] for row in ledger.runs(["head=knn"], sort="-params.k")] == [5, 3]
    assert len(ledger.runs(["params.metric=cosine", "params.k=3.0"])) == 1
    assert len(ledger.runs(["params.metric~cos"])) == 2 and ledger.runs(["params.beauty=1"]) == []
    ledger.path.unlink()
    assert ledger.runs() == []
    assert ledger.rebuild() == 3
    assert ledger.runs() == before


def _recorded(folder: Path, **columns: object) -> Ledger:
    """A ledger of made-up runs: a name → (cache, head, val accuracy, val log-loss)."""
    ledger = Ledger(folder)
    for number, (run, (cache, head, accuracy, loss)) in enumerate(columns.items()):  # type: ignore[misc]
        val = None if accuracy is None else {"accuracy": accuracy, "log_loss": loss}
        made = {"run": run, "cache": cache, "head": head, "val": val, "created": f"2026-01-0{number + 1}"}
        ledger.record(made)
    return ledger


def test_the_best_run_of_each_cache_and_of_each_head(tmp_path: Path) -> None:
    ledger = _recorded(
        tmp_path,
        a=("vgg", "mlp", 0.7, 0.9),
        b=("vgg", "svm", 0.8, 1.5),
        c=("resnet", "mlp", 0.6, 0.8),
        d=("resnet", "svm", 0.6, 0.7),  # as good as c, but later
        e=("alexnet", "mlp", None, None),  # no validation rows: best of nothing
    )
    assert [row["run"] for row in ledger.best("val_accuracy")] == ["b", "c"]
    assert [row["run"] for row in ledger.best("val_accuracy", "head")] == ["b", "a"]
    assert [row["run"] for row in ledger.best("val_log_loss")] == ["d", "a"]
    assert [row["run"] for row in ledger.best("val_log_loss", "head")] == ["d", "c"]
    assert [row["run"] for row in ledger.best("val_accuracy", where=["head=mlp"])] == ["a", "c"]
    assert [row["run"] for row in ledger.best("val_accuracy", limit=1)] == ["b"]
    assert ledger.best("test_accuracy") == []
    assert set(ledger.best("val_accuracy")[0]) == set(ledger.runs()[0])
    assert Ledger(tmp_path / "nowhere").best("val_accuracy") == []
    for by, per in (("beauty", "cache"), ("run; DROP TABLE runs", "cache"), ("val_accuracy", "run")):
        with pytest.raises(OptionError, match="Unknown"):
            ledger.best(by, per)


def test_a_check_finds_every_way_a_ledger_can_differ(cache: Cache) -> None:
    one, two, three = (train(cache, Training("knn", {"k": k})).folder for k in (3, 5, 7))
    ledger = Ledger(cache.path.parent)
    assert ledger.check() == Check(3, {}, {})
    evaluate(one)
    train(cache, Training("mlp", QUICK, test=True, calibrate=True))
    assert ledger.check() == Check(4, {}, {})
    with contextlib.closing(sqlite3.connect(ledger.path)) as db, db:
        db.execute("UPDATE runs SET val_accuracy = .99, params = '{}' WHERE run = ?", [one.name])
        db.execute("DELETE FROM runs WHERE run = ?", [two.name])
        db.execute("INSERT INTO runs (run) VALUES ('ghost-00000000')")
    (three / runs.RUN).write_bytes(b"{}")
    found = ledger.check()
    assert found.runs == 4 and set(found.differing) == {one.name, two.name, "ghost-00000000"}
    assert found.differing[one.name].startswith("val_accuracy: 0.99 in the ledger, ")
    assert "; params: '{}' in the ledger" in found.differing[one.name]
    assert found.differing[two.name] == "not in the ledger"
    assert list(found.unreadable) == [three.name]
    assert ledger.rebuild() == 3
    assert ledger.check() == Check(4, {}, found.unreadable)
    ledger.path.unlink()
    assert len(ledger.check().differing) == 3 and not ledger.path.exists()


@pytest.mark.parametrize(
    "where",
    ["head", "nothing=1", "head = 'x'; DROP TABLE runs", "1=1 OR head=mlp", "params.=1", "params.a.b=1"],
)
def test_odd_conditions_are_refused_or_harmless(cache: Cache, where: str) -> None:
    train(cache, Training("ridge"))
    ledger = Ledger(cache.path.parent)
    with contextlib.suppress(OptionError):
        assert ledger.runs([where]) == []
    assert len(ledger.runs()) == 1


def test_a_ledger_of_another_version_or_none_at_all_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with sqlite3.connect(ledger.path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(CacheError, match="version 9"):
        ledger.runs()
    ledger.path.write_bytes(b"not a database" * 100)
    with pytest.raises(CacheError, match="Cannot use the ledger"):
        ledger.runs()


MANY = """
import sys
from pathlib import Path
from featcache.training.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(20):
    ledger.record({"run": f"ridge-{sys.argv[2]}{number:07d}", "head": "ridge"})
"""


def test_many_processes_may_write_one_ledger(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(Ledger(tmp_path).runs()) == 80


def test_runs_are_found_by_the_sizes_of_their_layers(cache: Cache) -> None:
    for hidden in ((8,), (8, 4)):
        train(cache, Training("mlp", {**QUICK, "hidden": hidden}))
    (row,) = Ledger(cache.path.parent).runs(["params.hidden=[8, 4]", "params.lr<=1e-3"])
    assert row["params"]["hidden"] == [8, 4]


def test_history_is_written_for_people(cache: Cache) -> None:
    done = train(cache, Training("mlp", QUICK))
    lines = (done.folder / runs.HISTORY).read_text().splitlines()
    assert lines[0].split(",")[:2] == ["epoch", "train_loss"] and len(lines) == 7
    assert json.loads((done.folder / runs.RUN).read_text())["params"]["hidden"] == [50, 20]

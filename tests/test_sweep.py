"""Sweeps: grids, resumption, selection, and the split that is left alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import featcache
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run
from featcache.costs import Costs
from featcache.errors import DamagedError, HeadError, OptionError
from featcache.store.cache import Cache
from featcache.training import fit, runs
from featcache.training import sweep as module
from featcache.training.fit import Training
from featcache.training.grid import combinations, parse, text_of
from featcache.training.ledger import Ledger
from featcache.training.ranking import ranked
from featcache.training.subsets import Size
from featcache.training.sweep import News, Sweep, sweep
from tests.kit_caches import empty_cache, fill, separable_cache

QUICK = {"epochs": 4, "patience": None}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return separable_cache(tmp_path)


def _run_folders(cache: Cache) -> set[str]:
    return {path.parent.name for path in cache.path.glob(f"heads/*/{runs.RUN}")}


# --- grids ---


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("mlp", "lr=1e-5,1e-4,1e-3", (1e-5, 1e-4, 1e-3)),
        ("mlp", "weight_decay=0,1e-2", (0, 1e-2)),
        ("mlp", "weight-decay=0", (0,)),
        ("mlp", "hidden=50,20/128,64", ((50, 20), (128, 64))),
        ("mlp", "hidden=50,20", ((50, 20),)),
        ("mlp", "hidden=50/128", ((50,), (128,))),
        ("mlp", "hidden=/50", ((), (50,))),
        ("mlp", "dropout=0,.2", (0, 0.2)),
        ("mlp", "dropout=.1,.2/0,.5/.3", ((0.1, 0.2), (0, 0.5), 0.3)),
        ("mlp", "optimizer=adam, adamw", ("adam", "adamw")),
        ("mlp", "patience=5,none", (5, None)),
        ("mlp", "lr=.1,1e-1,0.10", (0.1,)),
        ("svm", "gamma=scale,auto,.5", ("scale", "auto", 0.5)),
        ("knn", "k=1,5", (1, 5)),
    ],
)
def test_values_have_the_types_of_the_option(kind: str, text: str, values: tuple[Any, ...]) -> None:
    ((_, found),) = parse(kind, [text]).items()
    assert found == values and [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("mlp", ["lr"], "Cannot read the grid 'lr'"),
        ("mlp", ["C=1"], "Unknown option of head 'mlp': 'C'"),
        ("lin", ["lr=1"], "Unknown head 'lin'"),
        ("mlp", ["lr=1e-3,fast"], "Option lr of head 'mlp' cannot be 'fast'"),
        ("mlp", ["lr=1e-3,-1"], "cannot be -1: expected a number above 0"),
        ("mlp", ["lr="], "Option lr of head 'mlp' cannot be ''"),
        ("mlp", ["lr=nan"], "cannot be nan"),
        ("mlp", ["hidden=50,x"], r"Option hidden of head 'mlp' cannot be \(50, 'x'\)"),
        ("mlp", ["hidden=50,0/7"], r"cannot be \(50, 0\)"),
        ("mlp", ["epochs=2.5"], "cannot be 2.5"),
        ("mlp", ["lr=1", "lr=2"], "names lr twice"),
    ],
)
def test_what_cannot_be_read_is_named(kind: str, texts: list[str], message: str) -> None:
    with pytest.raises((HeadError, OptionError), match=message):
        parse(kind, texts)


_RATES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=4, unique=True)
_SHAPES = st.lists(st.lists(st.integers(1, 999), max_size=3).map(tuple), min_size=2, max_size=4, unique=True)
_DECAYS = st.lists(st.one_of(st.integers(0, 9), st.floats(0, 9)), min_size=1, max_size=4)


@given(_RATES, _SHAPES, _DECAYS)
def test_a_grid_survives_its_text(rates: list[float], shapes: list[Any], decays: list[float]) -> None:
    texts = [
        "lr=" + ",".join(map(text_of, rates)),
        "hidden=" + "/".join(map(text_of, shapes)),
        "weight_decay=" + ",".join(map(text_of, decays)),
    ]
    grid = parse("mlp", texts)
    distinct = [value for i, value in enumerate(decays) if value not in decays[:i]]
    assert {name: list(values) for name, values in grid.items()} == {
        "lr": rates, "hidden": shapes, "weight_decay": distinct
    }  # fmt: skip
    points = list(combinations(grid))
    assert len(points) == len(rates) * len(shapes) * len(distinct)
    assert all(points.count(point) == 1 for point in points)
    assert list(combinations({})) == [{}]
    some = list(combinations(grid, 3))
    assert len(some) == min(3, len(points)) and some == list(combinations(grid, 3))
    assert [point for point in points if point in some] == some, "in order, and each once"


def test_combinations_come_as_itertools_has_them() -> None:
    grid = {"a": (1, 2), "b": (3,), "c": (4, 5, 6)}
    expected = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    assert list(combinations(grid)) == expected and list(combinations(grid, 99)) == expected
    huge = {name: range(1000) for name in "abcdef"}
    assert len(list(combinations(huge, 50))) == 50


def test_some_combinations_of_a_grid(cache: Cache) -> None:
    grid = parse("linear", ["lr=1e-4,1e-3,1e-2", "weight_decay=0,1e-3"])
    swept = sweep(cache, Sweep(Training("linear", QUICK), grid, random=2))
    assert len(swept.configurations) == 2
    whole = sweep(cache, Sweep(Training("linear", QUICK), grid))
    assert (whole.heads, whole.found) == (6, 2)


# --- ranking ---


def _record(run: str, accuracy: float, loss: float) -> dict[str, Any]:
    return {"run": run, "val": {"accuracy": accuracy, "log_loss": loss}, "best_epoch": None}


def test_the_order_is_that_of_the_mean_accuracy_then_the_loss() -> None:
    lines = [
        ({"k": 1}, _record("a", 0.6, 1.0), None),
        ({"k": 1}, _record("b", 0.8, 1.0), None),
        ({"k": 2}, _record("c", 0.7, 0.5), None),
        ({"k": 2}, _record("d", 0.7, 0.5), None),
        ({"k": 3}, _record("e", 0.9, 0.1), None),
        ({"k": 3}, None, "nan"),
        ({"k": 4}, None, "nan"),
        ({"k": 5}, _record("f", 0.75, 2.0), None),
    ]
    found = ranked(lines)
    assert [line.values["k"] for line in found] == [5, 2, 1, 3, 4]
    assert found[2].mean("val", "accuracy") == pytest.approx(0.7)
    assert found[2].deviation("val", "accuracy") == pytest.approx(0.02**0.5)
    assert found[0].deviation("val", "accuracy") is None and found[4].mean("val", "accuracy") is None
    assert found[2].mean("best_epoch") is None
    assert [line.best and line.best["run"] for line in found] == ["f", "c", "b", "e", None]


# --- sweeps ---


def test_every_head_of_a_sweep_is_the_run_it_would_be_alone(cache: Cache) -> None:
    grid = parse("mlp", ["lr=1e-3,1e-2", "hidden=9,6/8", "weight_decay=0,1e-2"])
    swept = sweep(cache, Sweep(Training("mlp", {"epochs": 8, "seed": 5}), grid, seeds=2))
    assert (swept.heads, swept.found, swept.failed, swept.together) == (16, 0, 0, 8)
    costs = Costs.from_record(swept.best["costs"])
    assert costs.together == 8 and costs.fit_seconds == pytest.approx(swept.best["fit_seconds"], abs=1e-4)
    assert costs.predict_rows == swept.best["val"]["n"] and costs.disk_bytes and costs.peak_ram_bytes
    assert len(swept.configurations) == 8 and len(_run_folders(cache)) == 16
    for configuration in swept.configurations:
        assert [record["params"]["seed"] for record in configuration.records] == [5, 6]
        for record in configuration.records:
            params = {**configuration.values, "epochs": 8, "seed": record["params"]["seed"]}
            alone = fit.train(cache, Training("mlp", params)).record
            assert record["params"] == alone["params"]
            assert (record["best_epoch"], record["epochs"]) == (alone["best_epoch"], alone["epochs"])
            assert record["val"]["accuracy"] == alone["val"]["accuracy"]
            assert record["val"]["log_loss"] == pytest.approx(alone["val"]["log_loss"], rel=1e-4)
            assert set(record) == set(alone) and record["test"] is None
            assert runs.read_run(cache.path / "heads" / record["run"]) == record
    rows = {row["run"]: row for row in Ledger(cache.path.parent).runs()}
    means = [line.mean("val", "accuracy") for line in swept.configurations]
    assert means == sorted(means, reverse=True)  # type: ignore[type-var]
    assert swept.best["run"] in rows and swept.best["val"]["accuracy"] == max(
        record["val"]["accuracy"] for record in swept.configurations[0].records
    )


@pytest.mark.parametrize(
    ("kind", "text"), [("logreg", "C=.01,1"), ("ridge", "alpha=1,10"), ("knn", "k=1,5"), ("svm", "C=.1,1")]
)
def test_other_kinds_come_out_as_they_would_alone(cache: Cache, kind: str, text: str) -> None:
    swept = sweep(cache, Sweep(Training(kind), parse(kind, [text])))
    assert (swept.heads, swept.failed, len(_run_folders(cache))) == (2, 0, 2)
    assert kind != "knn" or swept.together == 2
    for configuration in swept.configurations:
        (record,) = configuration.records
        alone = fit.train(cache, Training(kind, configuration.values)).record
        assert record["val"]["accuracy"] == alone["val"]["accuracy"]
        assert record["val"]["log_loss"] == pytest.approx(alone["val"]["log_loss"], rel=1e-3)


def test_without_a_grid_there_is_one_configuration(cache: Cache) -> None:
    swept = sweep(cache, Sweep(Training("linear", QUICK), {}, seeds=3))
    assert len(swept.configurations) == 1 and swept.together == 3
    assert swept.configurations[0].deviation("val", "accuracy") is not None


def test_the_test_split_is_read_for_the_chosen_head_alone(cache: Cache) -> None:
    shard = next((cache.path / "shards").glob("test-*"))
    kept = shard.read_bytes()
    shard.write_bytes(b"\0" * len(kept))
    grid = parse("linear", ["lr=1e-3,1e-2"])
    assert sweep(cache, Sweep(Training("linear", QUICK), grid)).best["test"] is None
    asked = Sweep(Training("linear", QUICK, test=True), grid)
    with pytest.raises(DamagedError, match=shard.name):
        sweep(Cache(cache.path), asked)
    shard.write_bytes(kept)
    swept = sweep(Cache(cache.path), asked)
    assert swept.found == 2 and swept.best["test"]["accuracy"] > 0.8
    tested = [row["run"] for row in Ledger(cache.path.parent).runs() if row["test_accuracy"] is not None]
    assert tested == [swept.best["run"]]
    assert sweep(Cache(cache.path), asked).best == swept.best


class Killed(Exception):
    pass


def test_a_killed_sweep_goes_on_where_it_was(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = parse("mlp", ["epochs=1,2,3,4", "hidden=8/6"])
    asked = Sweep(Training("mlp", {"patience": None}), grid)
    told: list[News] = []

    def kill(news: News) -> None:
        told.append(news)
        if news.done == 6:
            raise Killed

    with pytest.raises(Killed):
        sweep(cache, asked, kill)
    there = _run_folders(cache)
    assert len(there) == 6 == len(Ledger(cache.path.parent).runs())
    trained: list[int] = []
    store = fit.store
    monkeypatch.setattr(fit, "store", lambda *given: trained.append(1) or store(*given))
    swept = sweep(cache, asked)
    assert (swept.found, len(trained)) == (6, 2) and there < _run_folders(cache)
    again = sweep(cache, asked)
    assert (again.found, again.together, len(trained)) == (8, 0, 2)
    assert again.configurations == swept.configurations and again.best == swept.best


def test_only_the_very_same_heads_are_taken_for_finished(cache: Cache) -> None:
    grid = parse("linear", ["lr=1e-3,1e-2"])
    fit.train(cache, Training("linear", {**QUICK, "lr": 1e-2}))
    fit.train(cache, Training("linear", {**QUICK, "lr": 1e-3}, val_fraction=0.5))
    fit.train(cache, Training("linear", {**QUICK, "lr": 1e-3, "seed": 1}))
    fit.train(cache, Training("linear", {**QUICK, "lr": 1e-3}, val_fraction=0))
    fit.train(cache, Training("linear", {**QUICK, "lr": 1e-3}, calibrate=True))
    swept = sweep(cache, Sweep(Training("linear", QUICK), grid))
    assert swept.found == 1
    damaged = next(iter(swept.configurations)).records[0]["run"]
    path = cache.path / "heads" / damaged / runs.RUN
    path.write_bytes(path.read_bytes()[:-9])
    assert sweep(cache, Sweep(Training("linear", QUICK), grid)).found == 1


def test_heads_that_fail_are_named_and_come_last(cache: Cache) -> None:
    grid = parse("mlp", ["lr=1e30,1e-2"])
    swept = sweep(cache, Sweep(Training("mlp", QUICK), grid))
    assert [line.values["lr"] for line in swept.configurations] == [1e-2, 1e30] and swept.failed == 1
    assert "lr=1e+30" in swept.configurations[1].failures[0]
    with pytest.raises(HeadError, match=r"None of the heads could be trained: train_loss became"):
        sweep(cache, Sweep(Training("mlp", QUICK), {"lr": (1e30,)}))


def test_memory_bounds_how_many_train_at_once(cache: Cache) -> None:
    from featcache.heads.batched import bytes_of
    from featcache.heads.neural import LinearHead

    one = bytes_of(LinearHead(), 12, 3)
    grid = parse("linear", ["lr=1e-4,1e-3,2e-3,1e-2,2e-2", "weight_decay=0,1e-3"])
    alive: list[int] = []
    asked = Sweep(Training("linear", QUICK), grid, memory=4 * one)
    assert sweep(cache, asked, lambda news: alive.append(news.alive)).together == 4
    assert max(alive) == 4 and len(_run_folders(cache)) == 10
    assert sweep(cache, Sweep(Training("linear", {**QUICK, "seed": 1}), grid, memory=1)).together == 1


def test_news(cache: Cache) -> None:
    told: list[News] = []
    grid = parse("linear", ["epochs=1,3"])
    swept = sweep(cache, Sweep(Training("linear", {"patience": None}), grid), told.append)
    assert [(news.done, news.total, news.alive) for news in told] == [
        (0, 2, 0), (0, 2, 2), (0, 2, 2), (1, 2, 1), (1, 2, 1), (2, 2, 0)
    ]  # fmt: skip
    best = [news.best_accuracy for news in told]
    assert best[:2] == [None, None] and best[2:] == sorted(best[2:])  # type: ignore[type-var]
    left = [news.seconds_left for news in told]
    assert left[:2] == [None, None] and left[2] > 0 and left[-1] == 0  # type: ignore[operator]
    assert best[-1] == swept.best["val"]["accuracy"]


def test_sweeps_that_cannot_be_made_are_refused_before_anything_is_trained(
    cache: Cache, tmp_path: Path
) -> None:
    for asked, message in (
        (Sweep(Training("mlp", {"lr": 1.0}), {"lr": (1.0,)}), "lr is given both"),
        (Sweep(Training("mlp"), {"seed": (1, 2)}, seeds=2), "Seeds are given both"),
        (Sweep(Training("ridge"), {}, seeds=2), "A ridge head draws no random numbers"),
        (Sweep(Training("svm"), {}, seeds=2), "A svm head draws no random numbers"),
        (Sweep(Training("mlp"), {}, seeds=0), "seeds must be at least 1"),
        (Sweep(Training("mlp"), {}, random=0), "random must be at least 1"),
        (Sweep(Training("mlp", val_fraction=0), {}), "no validation split to choose"),
        (Sweep(Training("mlp", keep_checkpoints=1), {}), "keeps no checkpoints"),
        (Sweep(Training("mlp", calibrate=True), {}, folds=3), "calibrates no heads"),
        (Sweep(Training("mlp"), {}, folds=3, sizes=[Size(1)]), "Leave --cv out"),
        (Sweep(Training("mlp"), {}, sizes=[Size(1)], trials=0), "trials must be at least 1"),
        (Sweep(Training("mlp"), {"dropout": (0.1, (0.1,))}), "dropout has 1 values for 2 hidden layers"),
    ):
        with pytest.raises((OptionError, HeadError), match=message):
            sweep(cache, asked)
    bare = fill(empty_cache(tmp_path / "bare", {"train": 30}))
    with pytest.raises(OptionError, match="no test split"):
        sweep(bare, Sweep(Training("mlp", test=True), {}))
    assert not (cache.path / "heads").exists() and not (bare.path / "heads").exists()


def test_weights_do_not_pile_up(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    members: list[Any] = []
    made = module.members_of
    monkeypatch.setattr(module, "members_of", lambda *given: members.extend(made(*given)) or members)
    sweep(cache, Sweep(Training("linear", QUICK), parse("linear", ["lr=1e-3,1e-2"])))
    assert len(members) == 2 and not any(hasattr(member.head, "coefs_") for member in members)


# --- from Python and the command line ---


def test_from_python(cache: Cache) -> None:
    swept = featcache.sweep(cache, "linear", {"lr": [1e-3, 1e-2]}, seeds=2, epochs=3)
    assert swept.heads == 4 and swept.best["params"]["epochs"] == 3
    named = featcache.sweep(
        cache.name, "linear", {"lr": [1e-3, 1e-2]}, seeds=2, epochs=3, features_dir=cache.path.parent
    )
    assert named.found == 4


def _cli(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run(list(arguments))
    return code, *capfd.readouterr()


def test_json_has_the_documented_keys(cache: Cache, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", "--features-dir", str(cache.path.parent), "--cache", "easy", "--epochs", "3"]
    grid = ["--grid", "lr=1e-3,1e-2", "--grid", "hidden=8/6,5", "--seeds", "2"]
    code, out, _ = _cli(capfd, *arguments, *grid, "--test", "--json")
    found = json.loads(out)
    assert code == 0 and set(found) == set(KEYS["sweep"]) and len(found["configurations"]) == 4
    for line in found["configurations"]:
        assert set(line) == set(KEYS["a configuration of sweep"]) and len(line["runs"]) == 2
    assert set(found["best"]) == set(KEYS["train-head"]) and found["best"]["test"]["accuracy"] > 0.5
    assert (found["heads"], found["found"], found["together"]) == (8, 0, 4)


def test_people_see_a_table_and_the_next_step(cache: Cache, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", "--features-dir", str(cache.path.parent), "--cache", "easy", "--epochs", "3"]
    grid = ["--grid", "lr=1e-2,1e30", "--grid", "hidden=8,6/7"]
    code, out, err = _cli(capfd, *arguments, *grid)
    lines = out.splitlines()
    assert code == 0 and lines[0].split()[:3] == ["lr", "hidden", "runs"] and lines[2].startswith("0.01 ")
    assert "8,6" in out and "best run mlp-" in out
    best = out.split("best run ")[1].split()[0]
    assert f"next: featcache evaluate {best}" in err and "2 heads failed" in err
    code, _, err = _cli(capfd, *arguments, *grid)
    assert code == 0 and "2 of them found finished" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--grid", "lr"], 1, "Cannot read the grid 'lr'"),
        (["--head", "lin"], 1, "Unknown head 'lin'"),
        (["--grid", "lr=1", "--lr", "2"], 1, "lr is given both"),
        (["--head", "ridge", "--seeds", "2"], 1, "draws no random numbers"),
        (["--seeds", "0"], 2, "seeds"),
        (["--memory", "0"], 2, "memory"),
    ],
)
def test_wrong_input_gets_one_clear_sentence(
    cache: Cache, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    features = ["--features-dir", str(cache.path.parent), "--cache", "easy"]
    got, out, err = _cli(capfd, "sweep", *features, *arguments)
    assert got == code and out == "" and message in err and "Traceback" not in err
    assert not _run_folders(cache)


def test_heads_of_every_kind_can_be_swept(cache: Cache) -> None:
    from featcache.heads.catalogue import KINDS

    small = {"forest": {"n_estimators": 5}, "boosting": {"n_estimators": 5}}
    for kind in KINDS:
        params = QUICK if kind in ("linear", "mlp") else small.get(kind, {})
        (configuration,) = sweep(cache, Sweep(Training(kind, params), {})).configurations
        alone = fit.train(cache, Training(kind, params)).record
        (record,) = configuration.records
        assert record["params"] == alone["params"]
        assert record["val"]["log_loss"] == pytest.approx(alone["val"]["log_loss"], rel=1e-3)

"""`--memory-budget`: the same heads in less memory, and nothing that a run is known by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from featcache.commands.options import Bytes
from featcache.commands.root import run
from featcache.heads import saving
from featcache.store.cache import Cache
from featcache.training import fit
from featcache.training.fit import Training
from tests.kit_caches import separable_cache
from tests.kit_heads import same


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return separable_cache(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", None), ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 << 29), ("64k", 64_000),
        ("4096", 4096), ("3b", 3), ("1ti", 1 << 40),
    ],
)  # fmt: skip
def test_amounts_of_memory(text: str, expected: int | None) -> None:
    assert Bytes().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1.2.3GB", "2 GBs", "1e9", "inf"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no amount of memory such as 2GB"):
        Bytes().convert(text, None, None)


@pytest.mark.parametrize("kind", ["mlp", "ridge"])
def test_a_run_is_the_same_within_any_budget(cache: Cache, kind: str) -> None:
    params: dict[str, Any] = {"epochs": 3} if kind == "mlp" else {}
    plain, small = (
        fit.train(cache, Training(kind, params, test=True, memory_budget=budget)) for budget in (None, 1)
    )
    assert same(plain.head, small.head)
    for name in ("params", "split", "head", "key"):
        assert plain.record[name] == small.record[name]
    assert "budget" not in json.dumps(small.record)
    for split in ("val", "test"):
        assert {**plain.record[split], "predict_seconds": 0} == {**small.record[split], "predict_seconds": 0}
    data = [(one.folder / "head.safetensors").read_bytes() for one in (plain, small)]
    assert same(saving.loads(data[0]), saving.loads(data[1]))


def test_a_table_keeps_its_rows_within_a_budget(cache: Cache) -> None:
    table, val = fit.read_tables(cache, Training("mlp", memory_budget=1))
    assert val is not None
    for one in (table, val):
        assert one.selection.budget == 1
        assert np.array_equal(np.asarray(one.selection), one.X)
        assert np.array_equal(one.selection[2:5], one.X[2:5])


def test_the_commands_take_a_budget(cache: Cache, capfd: pytest.CaptureFixture[str]) -> None:
    shared = ["--features-dir", str(cache.path.parent), "--cache", cache.name, "--epochs", "2", "--json"]
    found = []
    for more in (["--memory-budget", "1kB"], []):
        capfd.readouterr()
        assert run(["train-head", *shared, "--compute-precision", "bf16", *more]) == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0]["params"] == found[1]["params"] and found[0]["params"]["compute_precision"] == "bf16"
    assert found[0]["val"]["accuracy"] == found[1]["val"]["accuracy"]
    assert run(["sweep", *shared, "--memory-budget", "1kB", "--compute-precision", "bf16"]) == 0
    swept = json.loads(capfd.readouterr().out)
    assert swept["found"] == 1 and swept["best"]["run"] in [one["run"] for one in found]
    assert run(["train-head", *shared, "--memory-budget", "lots"]) == 2
    assert "no amount of memory" in capfd.readouterr().out

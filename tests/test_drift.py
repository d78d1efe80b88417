"""doctor --drift: quiet about the same machine, loud about features that are not ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run
from featcache.errors import CacheError, OptionError
from featcache.extraction.drift import _compared, drift
from featcache.extraction.request import Settings
from featcache.store import mending
from featcache.store.cache import Cache
from tests.kit_images import make_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and caches of three stored types, one of them in bf16."""
    root = tmp_path_factory.mktemp("drift")
    make_folder(root / "photos", train=5, test=3)
    for options in ({}, {"store_dtype": "int8"}, {"store_dtype": "float32", "precision": "bf16"}):
        extract(root, **options)
    return root


def extract(root: Path, **options: str) -> Cache:
    return featcache.extract(
        f"folder:{root / 'photos'}",
        backbone="squeezenet1_1",
        weights="random:0",
        image_size=48,
        features_dir=root / "features",
        **options,  # type: ignore[arg-type]
    )


def moved(cache: Cache, by: float, column: int = 3) -> None:
    """Make the cache one whose first shard has a column that is off by so many deviations."""
    part = cache.shards()[0]
    rows = {
        node: np.array(cache.blocks(cache.commits()[part.name])["features"].map()) for node in cache.nodes
    }
    mending.discard(cache, part)
    for values in rows.values():
        values[:, column] += by * values[:, column].std() + np.finfo(values.dtype).tiny
    cache.commit(part, rows)
    cache.seal()


@pytest.mark.parametrize("dtype", ["float16", "int8", "float32"])
def test_the_same_machine_does_not_drift(made: Path, dtype: str) -> None:
    cache = extract(made, store_dtype=dtype, precision="bf16" if dtype == "float32" else "fp32")
    found = drift(cache.path, Settings(made / "features"))
    assert found.within and found.rows == 24 and found.versions == {}
    node = found.nodes[cache.nodes[0]]
    assert node.cosine >= 0.999999 and node.difference <= 1e-4
    again = drift(cache.path, Settings(made / "features", batch_size=5), rows=7)
    assert again.within and again.rows == 7


def test_features_that_are_not_ours_are_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "features", tmp_path / "features")
    cache = Cache(tmp_path / "features" / extract(made).path.name)
    moved(cache, 0.05)
    found = drift(cache.path, Settings(tmp_path / "features"))
    node = found.nodes[cache.nodes[0]]
    assert not found.within and node.column == 3
    assert 0.03 < node.difference < 0.07 and node.worst in cache.plan.ids


def test_rounding_to_the_stored_type_is_no_drift() -> None:
    fresh = np.random.default_rng(0).normal(5, 1, (50, 8))
    ids = [str(row) for row in range(50)]
    for dtype in (np.float16, np.float32):
        stored = fresh.astype(dtype)
        rounding = np.spacing(np.abs(stored)).astype(np.float64) / 2
        same = _compared(stored.astype(np.float64), fresh, rounding, ids)
        assert same.difference == 0 and same.cosine == pytest.approx(1, abs=1e-15)
        off = stored.astype(np.float64)
        off[7, 2] += 0.1
        assert _compared(off, fresh, rounding, ids).difference == pytest.approx(
            0.1 / off[:, 2].std(), rel=0.1
        )
        assert _compared(off, fresh, rounding, ids).worst == "7"


def test_columns_that_hardly_vary_are_not_blown_up() -> None:
    fresh = np.random.default_rng(0).normal(0, 1, (50, 8))
    fresh[:, 0] = 0
    stored = fresh.copy()
    stored[3, 0] = 1e-6
    assert _compared(stored, fresh, np.zeros_like(fresh), ["x"] * 50).difference < 1e-3


def test_images_that_are_not_those_of_the_cache(made: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", train=5, test=3, seed=9)
    cache = extract(made)
    with pytest.raises(CacheError, match=r"are not those .* was made from"):
        drift(cache.path, Settings(made / "features"), dataset=f"folder:{other}")
    copy = shutil.copytree(made / "photos", tmp_path / "copy")
    assert drift(cache.path, Settings(made / "features"), rows=2, dataset=f"folder:{copy}").within
    with pytest.raises(OptionError, match="at least 2 rows"):
        drift(cache.path, Settings(made / "features"), rows=1)


def test_an_unfinished_cache_can_be_measured(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "features", tmp_path / "features")
    cache = Cache(tmp_path / "features" / extract(made).path.name)
    mending.discard(cache, cache.shards()[0])
    assert drift(cache.path, Settings(tmp_path / "features")).rows == 9  # the test split's
    mending.discard(cache, cache.shards()[1])
    with pytest.raises(CacheError, match="0 good rows"):
        drift(cache.path, Settings(tmp_path / "features"))


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "features", tmp_path / "features")
    cache = Cache(tmp_path / "features" / extract(made).path.name)
    command = ["doctor", "--drift", cache.name, "--features-dir", str(tmp_path / "features"), "--rows", "6"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(KEYS["doctor --drift"]) and found["within"] and found["rows"] == 6
    assert run(command) == 0
    assert "No drift: 6 rows of" in capsys.readouterr().out
    moved(cache, 0.5)
    assert run([*command[:-1], "24"]) == 1
    assert "\nDrift: 24 rows of" in capsys.readouterr().out

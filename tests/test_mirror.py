"""Caches in an object store: written and read through a mirror, by one and by several machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featcache.store import keeping, records
from featcache.store.cache import Cache
from tests import kit_objects
from tests.kit_caches import empty_cache, fill
from tests.kit_images import tree


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with kit_objects.serving() as address:
        yield address


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "memory":
        yield f"{kit_objects.new_memory()}/features"
    else:
        kit_objects.use_server(monkeypatch, request.getfixturevalue("server"))
        yield f"{kit_objects.new_bucket()}/deep/features"
    kit_objects.forget()


def _rows(cache: Cache) -> np.ndarray:
    return np.asarray(cache.table("train", val_fraction=0).X)


def test_a_cache_is_written_and_read_by_another_machine(url: str, tmp_path: Path) -> None:
    plain = fill(empty_cache(tmp_path / "plain", {"train": 20, "test": 5}))
    here = kit_objects.other_machine(url, tmp_path / "a")
    cache = fill(empty_cache(here, {"train": 20, "test": 5}))
    assert tree(cache.path) == tree(plain.path), "the mirror holds the very bytes of a folder's cache"
    assert kit_objects.names(url) == sorted(f"{cache.name}/{name}" for name in tree(plain.path))
    there = kit_objects.other_machine(url, tmp_path / "b")
    assert there != here
    found = Cache(there / cache.name)
    assert not list(there.rglob("*.h5")), "shards come when they are read"
    assert found.sealed() == plain.sealed()
    assert np.array_equal(_rows(found), _rows(plain))
    assert [path.name[:5] for path in there.rglob("*.h5")] == ["train"] * 3
    assert tree(found.path / records.COMMITS) == tree(plain.path / records.COMMITS)
    assert keeping.shown(found.path) == f"{url}/{cache.name}"

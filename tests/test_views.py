"""Augmented views in a cache: drawn from nothing but seed, id and number; added, resumed, mended, read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.backbones.lane import Lane
from featcache.errors import CacheError, DatasetError, OptionError
from featcache.extraction import pipeline
from featcache.extraction.drift import drift
from featcache.extraction.dry_run import dry_run
from featcache.extraction.extract import Extraction, extract
from featcache.extraction.repair import repair
from featcache.extraction.request import Request, Settings
from featcache.store import records
from featcache.store.cache import Cache
from tests.kit_images import make_folder, tree

SIZE = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def request_(photos: Path) -> Request:
    return Request(f"folder:{photos}", "squeezenet1_1", "random:0", image_size=SIZE, views=3, augment="crop")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "features", tmp_path / "data", "cpu", rows_per_shard=5)


class Passes:
    """Counts the images that go through the backbone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        real = Lane.submit

        def submit(lane: Lane, pixels: Any, rows: Any) -> Any:
            self.images += len(pixels)
            return real(lane, pixels, rows)

        monkeypatch.setattr(Lane, "submit", submit)


def test_rows_hold_views_and_view_0_is_the_image(request_: Request, settings: Settings) -> None:
    found = extract(request_, settings)
    assert found.rows == {"train": 24, "test": 12} and found.images == 24 * 3 + 12
    cache, plain = Cache(found.path), Cache(extract(replace(request_, views=1, augment=None), settings).path)
    assert cache.record["format"] == cache.recipe.format == 3 and plain.record["format"] == 1
    table = cache.table("train", val_fraction=0)
    whole = cache.table("train", val_fraction=0, views="all")
    assert table.X.shape == (24, 512) and whole.X.shape == (24, 3, 512)
    assert np.shares_memory(table.X, table.base) and np.shares_memory(whole.X, whole.base)
    assert np.array_equal(table.X, whole.X[:, 0])
    assert np.array_equal(table.X, plain.table("train", val_fraction=0).X)
    assert np.array_equal(cache.table("test").X, plain.table("test").X)
    assert cache.table("test", views="all").X.shape == (12, 1, 512)
    apart = np.abs(whole.X[:, 1:].astype(float) - whole.X[:, :1]).max(axis=2)
    assert (apart > 0).all(), "every view differs from the image"
    assert extract(request_, settings).hit


@pytest.mark.parametrize("there", [1, 2, 5])
def test_only_the_new_views_are_computed(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    alone = extract(request_, replace(settings, features_dir=tmp_path / "alone"))
    first = replace(request_, views=there, augment=None if there == 1 else "crop")
    extract(first, settings)
    before = {path: data for path, data in tree(settings.features_dir).items() if "--" in path}
    passes, told = Passes(monkeypatch), list[str]()
    added = extract(request_, settings, notify=told.append)
    new = max(0, 3 - there)
    assert passes.images == added.images == 24 * new
    assert any("are copied" in text for text in told)
    assert tree(added.path) == tree(alone.path), "byte for byte the cache that is made at once"
    after = tree(settings.features_dir)
    assert all(after[path] == data for path, data in before.items())

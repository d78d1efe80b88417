"""Every row has the features and the label of its image, whoever died on the way; nothing else is stored."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featcache.errors import CacheError
from featcache.extraction import pipeline
from featcache.recipe import format_of
from featcache.store.cache import Cache
from tests.faults import hashing
from tests.faults.processes import fork, kill
from tests.faults.trials import FULL, PART, draw, numbers, tally
from tests.kit_images import tree

ROWS = "Every row has the features and the label of the image the plan names"
EQUAL = "A resumed cache equals an uninterrupted one, bit for bit"
FINITE = "No NaN or infinity is stored as a good feature"


@pytest.mark.timeout(3000)
def test_kills_resumes_and_shuffled_workers(place: Path) -> None:
    rows = 1000 if FULL else 150
    truth = hashing.photos(place / "photos", rows, 0)
    data = hashing.dataset(place / "photos")
    whole = hashing.cache(place / "whole", data)
    assert hashing.run(whole, data) == rows
    hashing.check(whole, truth)
    with tally(ROWS, f"{rows} hashed images: SIGKILL, resumed, other workers and batch sizes") as found:
        kills = 0
        for trial in numbers(20, 500):
            rng, here = draw("rows", trial), place / str(trial)
            for _ in range(rng.randint(1, 3)):
                options = {"batch_size": rng.randint(1, 40), "workers": rng.randint(1, 6)}
                workers = [fork(_extract, here, data, options) for _ in range(rng.randint(1, 2))]
                time.sleep(rng.random() * 0.00025 * rows)
                codes = [kill(worker) for worker in workers]
                assert set(codes) <= {0, -signal.SIGKILL}
                kills += codes.count(-signal.SIGKILL)
            cache = hashing.cache(here, data)
            hashing.run(cache, data, batch_size=rng.randint(1, 40), workers=rng.randint(1, 6))
            hashing.check(Cache(cache.path), truth)
            assert tree(cache.path) == tree(whole.path)
            found.add("right in every row, and bit for bit the uninterrupted cache")
        found.counts["processes killed"] = kills
        assert kills


def _extract(here: Path, data: object, options: dict[str, object]) -> None:
    hashing.run(hashing.cache(here, data), data, **options)  # type: ignore[arg-type]


VALUES = [0.0, 1.0, -1.0, 65504.0, -65504.0, 65505.0, 65519.9, 65520.0, 1e38, -1e38, 3e38]
VALUES += [float("nan"), float("inf"), float("-inf"), 6e-8, 1e-8, -3e-8, 1e-40, 1e-45]


class FakeBackbone(hashing.HashBackbone):
    """Gives some of the values above, among ordinary ones."""

    def __init__(self, rng: np.random.Generator, values: list[float]) -> None:
        self.rng, self.values = rng, values
        self.given: list[NDArray[np.float32]] = []

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        if len(batch) == 1 and self.given:  # an image is looked at again, to say what is wrong with it
            last = self.given[-1]
            return {"flatten": last[[np.argmax(~(np.abs(last) <= 65519.99).all(axis=1))]]}
        rows = self.rng.normal(size=(len(batch), hashing.WIDTH)).astype(np.float32)
        for value in self.values:
            rows[self.rng.integers(len(rows)), self.rng.integers(hashing.WIDTH)] = value
        self.given.append(rows.copy())
        return {"flatten": rows}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_what_is_not_finite_is_never_stored(place: Path, dtype: str) -> None:
    hashing.photos(place / "photos", 40, 1)
    data = hashing.dataset(place / "photos")
    recipe = replace(hashing.RECIPE, store_dtype=dtype, format=format_of(dtype, None))
    most = 65519.99 if dtype == "float16" else 3.4e38
    with tally(FINITE, f"odd values from a backbone, stored as {dtype}; rows") as found:
        trial = 0
        while found.trials < len(numbers(3400, 340_000)):
            rng = np.random.default_rng([trial, 7, PART])
            chosen = [VALUES[i] for i in rng.integers(len(VALUES), size=rng.integers(0, 3))]
            backbone = FakeBackbone(rng, chosen)
            cache = hashing.cache(place / f"{dtype}{trial}", data, 40, recipe)
            good = all(np.isfinite(value) and abs(value) <= most for value in chosen)
            try:
                settings = {"batch_size": 40, "workers": 1, "max_pixels": 10**6}
                pipeline.run(cache, data, backbone, **settings)  # type: ignore[arg-type]
            except CacheError as error:
                # A later value may have overwritten the one that did not fit.
                given = backbone.given[-1]
                assert not np.isfinite(given).all() or np.abs(given).max() > most, chosen
                assert "never stored" in error.message or "does not fit into" in error.message
                last = cache.commits()
                assert len(last) < len(backbone.given)
            else:
                assert good or all((np.abs(rows) <= most).all() for rows in backbone.given)
                for commit, rows in zip(
                    cache.commits().values(), sorted_by_part(backbone.given), strict=True
                ):
                    _check_stored(cache.blocks(commit), rows, dtype)
            for _ in range(len(data)):
                found.add("stored as given, or refused by name")
            trial += 1


def _check_stored(blocks: Mapping[str, Any], rows: NDArray[np.float32], dtype: str) -> None:
    """The rows are what was given, in the stored type; in eight bits within half a step of it."""
    stored = blocks["features"].map().astype(np.float64)
    if dtype == "int8":
        scale, offset = (blocks[name].map().astype(np.float64) for name in ("scale", "offset"))
        assert np.isfinite(scale).all() and np.isfinite(offset).all()
        rounding = 1e-6 * np.abs(rows).max(axis=0) + 1e-42  # of float32, and of its smallest numbers
        assert (np.abs(offset + scale * stored - rows) <= 0.5 * scale + rounding).all()
        return
    assert np.isfinite(stored).all()
    with np.errstate(over="ignore"):
        assert np.array_equal(stored, rows.astype(dtype).astype(np.float64))


def sorted_by_part(given: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the batches in the order of the commit records: test before train, the plan has train first."""
    return [given[-1], *given[:-1]] if len(given) > 1 else given

"""A backbone whose feature is a hash of the image, so that every stored row tells which image it is of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image

from featcache.extraction import pipeline
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.recipe import Node, Preprocess, Recipe, Weights
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.store.records import cache_key

SIDE, WIDTH = 16, 16
CLASSES = ("ape", "bee", "cat")
RECIPE = Recipe(
    backbone="resnet18",
    weights=Weights("random:0", "0" * 64),
    nodes=(Node("flatten", "flatten"),),
    preprocess=Preprocess("squash", SIDE, SIDE),
)


def feature(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 16 numbers from 0 to 255 that are the hash of an image's pixels."""
    return np.frombuffer(xxhash.xxh3_128_digest(np.ascontiguousarray(pixels).data), np.uint8).astype(
        np.float32
    )


class HashBackbone:
    """Stands in for an extractor."""

    device, columns = "cpu", {"flatten": WIDTH}
    precision, crop, runtime = "fp32", SIDE, "torch"
    work = SimpleNamespace(streams=1, threads_each=1, chunk=8)

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the features of a batch."""
        return {"flatten": np.stack([feature(image) for image in batch])}

    def rows(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of a batch as tensors."""
        return {node: torch.from_numpy(values) for node, values in self(pixels.numpy()).items()}


def photos(folder: Path, rows: int, seed: int) -> dict[str, tuple[NDArray[np.float32], int]]:
    """Write images of the backbone's very size; return id → (feature, label), the truth."""
    rng, truth = np.random.default_rng(seed), {}
    for number in range(rows):
        label, split = int(rng.integers(3)) if number > 5 else number % 3, "train" if number % 4 else "test"
        if number <= 5:
            split = "train"
        name = f"{split}/{CLASSES[label]}/{number:05d}.png"
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name, compress_level=0)
        truth[name] = feature(pixels), label
    return truth


def dataset(folder: Path) -> Dataset:
    """Open the images."""
    return open_source(f"folder:{folder}", folder.parent / "data").open()


def cache(folder: Path, data: Dataset, rows_per_shard: int = 32, recipe: Recipe = RECIPE) -> Cache:
    """Make, or open, the cache of a data set."""
    key = cache_key(recipe.fingerprint, data.fingerprint)
    plan = Plan(data.ids, data.labels, data.splits, data.content_hashes)
    record = {
        "key": key,
        "recipe": recipe.to_dict(),
        "dataset": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "classes": list(data.classes),
            "rows": plan.counts(),
            "ignored": {"count": 0, "first": []},
        },
        "columns": {"flatten": WIDTH},
        "rows_per_shard": rows_per_shard,
        "request": {},
        "versions": {},
    }
    return Cache.create(folder / f"{data.name}--hash--{key[:10]}", record, plan)


def run(made: Cache, data: Dataset, **options: object) -> int:
    """Extract what is missing and seal."""
    settings: dict[str, object] = {"batch_size": 8, "workers": 2, "max_pixels": 10**6, **options}
    done = pipeline.run(made, data, HashBackbone(), **settings)  # type: ignore[arg-type]
    made.seal()
    return done


def check(made: Cache, truth: dict[str, tuple[NDArray[np.float32], int]]) -> None:
    """Compare every row of the cache with the truth."""
    seen: set[str] = set()
    for split in made.plan.counts():
        table = made.table(split, val_fraction=0)
        for name, row, label in zip(table.ids, table.X, table.y.tolist(), strict=True):
            expected, number = truth[name]
            assert np.array_equal(row.astype(np.float32), expected), f"the features of {name}"
            assert label == number and made.classes[label] == name.split("/")[1], f"the label of {name}"
            seen.add(name)
    assert seen == set(truth)

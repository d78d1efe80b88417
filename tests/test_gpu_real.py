"""Real photos on a GPU: every precision against float32 on the CPU, and bytes that stay the same."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
from featcache.store.cache import Cache
from tests.kit_images import tree

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture
def images(request: pytest.FixtureRequest) -> Path:
    """A folder with CIFAR-10 and the weights, perhaps photos: less than `real_data` is enough."""
    place = Path(os.environ.get("FEATCACHE_REAL", "nowhere"))
    needed = ("cifar10", "squeezenet1_0.safetensors")
    if all((place / name).exists() for name in needed):
        return place
    found: Path = request.getfixturevalue("real_data")
    return found


def features(request: Request, settings: Settings) -> np.ndarray:
    cache = Cache(extract(request, settings).path)
    return np.concatenate([cache.table(split, val_fraction=0).X for split in cache.plan.counts()]).astype(
        float
    )


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the smallest cosine, and the largest difference in standard deviations of all features."""
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines.min()), float(np.abs(a - b).max() / b.std())


@pytest.mark.parametrize("data", ["cifar10", "imagenette160-subset"])
def test_a_gpu_gives_the_features_of_a_cpu(images: Path, tmp_path: Path, data: str) -> None:
    if not (images / data).is_dir():
        pytest.skip(f"{images} has no {data}")
    asked = Request(
        f"folder:{images / data}",
        "squeezenet1_0",
        str(images / "squeezenet1_0.safetensors"),
        store_dtype="float32",
        limit=10,
    )
    settings = Settings(tmp_path / "cpu", tmp_path, "cpu")
    wanted = features(asked, settings)
    for precision, least, most in (
        ("fp32", 0.999999, 1e-3),
        ("tf32", 0.99999, 5e-2),
        ("bf16", 0.999, 0.5),
        ("fp16", 0.9999, 5e-2),
    ):
        on_gpu = replace(settings, features_dir=tmp_path / precision, device="cuda")
        cosine, largest = distance(features(replace(asked, precision=precision), on_gpu), wanted)
        assert cosine >= least and largest <= most, (precision, cosine, largest)


def test_the_same_bytes_every_time(images: Path, tmp_path: Path) -> None:
    asked = Request(f"folder:{images / 'cifar10'}", "resnet18", "random:0", precision="bf16", limit=500)
    found = []
    for number, workers in enumerate((1, 5, None)):
        settings = Settings(tmp_path / str(number), tmp_path, "cuda", 128, workers)
        found.append(tree(extract(asked, settings).path))
    assert found[0] == found[1] == found[2]


PHOTOS = ("imagenet-photos-200", "imagenette160-subset")


@pytest.fixture
def photos(images: Path, tmp_path: Path) -> Path:
    """A folder with a class of some 200 photos."""
    for name in PHOTOS:
        if (images / name).is_dir():
            files = sorted(path for path in (images / name).rglob("*") if path.is_file())
            (tmp_path / "photos" / "train" / "all").mkdir(parents=True)
            for number, path in enumerate(files[:: max(1, len(files) // 200)]):
                shutil.copy(path, tmp_path / "photos" / "train" / "all" / f"{number:04d}.jpg")
            return tmp_path / "photos"
    pytest.skip(f"{images} has no photos")

"""End to end on real images with real weights; skipped, with the reason, where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import SqueezeNet1_0_Weights

import featcache
from featcache.backbones import weights
from featcache.inference.predict import predict_files
from featcache.training.evaluate import evaluate

pytestmark = pytest.mark.real


def _extract(dataset: Path, real_data: Path, features: Path, **options: object) -> featcache.Cache:
    return featcache.extract(
        f"folder:{dataset}",
        backbone="squeezenet1_0",
        weights=str(real_data / "squeezenet1_0.safetensors"),
        features_dir=features,
        **options,  # type: ignore[arg-type]
    )


def test_cifar_features_beat_pixels(real_data: Path, tmp_path: Path) -> None:
    cache = _extract(real_data / "cifar10", real_data, tmp_path, limit=30)
    assert cache.plan.counts() == {"train": 300, "test": 300}
    trained = featcache.train_head(cache, "logreg", test=True)
    tables = [cache.table(split, val_fraction=0) for split in ("train", "test")]
    root = real_data / "cifar10"
    pixels = [np.stack([np.asarray(Image.open(root / name)).ravel() for name in t.ids]) for t in tables]
    head = featcache.LogisticHead().fit(pixels[0].astype(np.float32), tables[0].y)
    on_pixels = float(head.score(pixels[1].astype(np.float32), tables[1].y))
    # Measured: .557 (32 training images a class) against .248 (40 a class).
    assert trained.record["test"]["accuracy"] > 0.45 > 0.38 > on_pixels


@pytest.fixture(scope="module")
def photos(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> featcache.Cache:
    """20 photos a class and split: their extraction takes a while."""
    place = tmp_path_factory.mktemp("features")
    return _extract(real_data / "imagenette160-subset", real_data, place, limit=20)


def test_photos_are_told_apart_and_both_weight_files_are_one(
    real_data: Path, photos: featcache.Cache
) -> None:
    cache, place = photos, photos.path.parent
    assert cache.plan.counts() == {"train": 200, "val": 200}
    trained = featcache.train_head(cache, "svm")
    assert trained.record["val"]["accuracy"] > 0.85
    assert "test" not in evaluate(trained.folder)["details"]
    again = featcache.extract(
        f"folder:{real_data / 'imagenette160-subset'}",
        backbone="squeezenet1_0",
        weights=str(real_data / "squeezenet1_0.pth"),
        features_dir=place,
        limit=20,
    )
    assert again.path == cache.path


def test_features_are_those_of_the_weights_own_transform(real_data: Path, tmp_path: Path) -> None:
    choice = weights.resolve("squeezenet1_0", str(real_data / "squeezenet1_0.safetensors"))
    state, _ = weights.load("squeezenet1_0", choice)
    network = weights.assemble("squeezenet1_0", state)
    steps = SqueezeNet1_0_Weights.DEFAULT.transforms()
    options = {"limit": 3, "preprocess": "weights", "store_dtype": "float32"}
    cache = _extract(real_data / "imagenette160-subset", real_data, tmp_path, **options)
    table = cache.table("train")
    for row, name in zip(table.X, table.ids, strict=True):
        image = Image.open(real_data / "imagenette160-subset" / name).convert("RGB")
        with torch.inference_mode():
            expected = network.features(steps(image)[None]).mean((2, 3))[0].numpy()
        cosine = float(row @ expected / np.linalg.norm(row) / np.linalg.norm(expected))
        assert cosine > 0.999999
        assert np.abs(row - expected).max() < 1e-3 * expected.std()


def test_photos_get_the_predictions_of_their_cached_features(
    real_data: Path, photos: featcache.Cache
) -> None:
    """The training cache's own images, read as new files: what differs is a tie within the tolerance."""
    cache, place = photos, photos.path.parent
    run = str(featcache.train_head(cache, "logreg", features_dir=place).record["run"])
    predictor = featcache.predictor(run, features_dir=place)
    tables = [cache.table(split, val_fraction=0) for split in ("train", "val")]
    cached = np.concatenate([predictor.head.predict_proba(table.X) for table in tables])
    root = real_data / "imagenette160-subset"
    paths = [str(root / name) for table in tables for name in table.ids]
    found = list(predict_files(predictor, paths, top=len(cache.classes), batch_size=37))
    assert len(found) == len(cached) == 400
    proba = np.array([[dict(each.top)[name] for name in cache.classes] for each in found])
    np.testing.assert_allclose(proba, cached, atol=2e-3)
    differ = np.flatnonzero(proba.argmax(axis=1) != cached.argmax(axis=1))
    assert len(differ) <= 0.001 * len(cached) or all(
        np.ptp(np.sort(cached[row])[-2:]) < 4e-3 for row in differ
    )

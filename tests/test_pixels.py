"""Raw pixels, cached like any other features: the baseline on the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.backbones import catalogue, weights
from featcache.errors import OptionError
from featcache.images.decode import decode
from tests.kit_images import make_folder


def test_features_are_the_pixels_scaled(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", train=3, test=1)
    cache = featcache.extract(
        f"folder:{photos}", backbone="pixels", layers=("pixels", "grey"), image_size=16,
        preprocess="squash", store_dtype="float32", features_dir=tmp_path / "features",
    )  # fmt: skip
    assert cache.columns == {"pixels": 3 * 16 * 16, "grey": 16 * 16}
    assert cache.recipe.weights.name == "none"
    table = cache.table("train", val_fraction=0)
    from PIL import Image

    for name, row in zip(table.ids, table.X, strict=True):
        image = Image.fromarray(decode((photos / name).read_bytes()))
        small = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).astype(np.float64)
        scaled = (small / 255 - 0.5) / 0.5
        np.testing.assert_allclose(row, scaled.transpose(2, 0, 1).ravel(), atol=1e-6)
    grey = cache.table("train", node="grey", val_fraction=0)
    np.testing.assert_allclose(grey.X, table.X.reshape(len(table), 3, -1).mean(axis=1), atol=1e-6)


def test_grey_digits_have_64_columns_and_classical_heads_learn_them(tmp_path: Path) -> None:
    cache = featcache.extract("digits", backbone="pixels", layers="grey", image_size=8, features_dir=tmp_path)
    assert cache.columns == {"grey": 64}
    accuracy = {
        kind: featcache.train_head(cache, kind, features_dir=tmp_path).record["val"]["accuracy"]
        for kind in ("tree", "forest", "boosting", "naive-bayes", "dummy", "logreg")
    }
    assert accuracy["dummy"] < 0.2 < 0.75 < accuracy["tree"] < 0.94 < accuracy["forest"]
    assert min(accuracy["boosting"], accuracy["logreg"]) > 0.93 and accuracy["naive-bayes"] > 0.7


def test_it_has_no_weights() -> None:
    assert weights.resolve("pixels").files() == []
    assert sum(layer.parameters for layer in catalogue.layers("pixels", 8)) == 0
    with pytest.raises(OptionError, match="The backbone pixels has no weights, got 'random:0'"):
        weights.resolve("pixels", "random:0")


def test_a_head_on_pixels_predicts_new_images(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", train=5, test=2)
    cache = featcache.extract(
        f"folder:{photos}", backbone="pixels", image_size=12, features_dir=tmp_path / "features"
    )
    run = featcache.train_head(cache, "forest", val_fraction=0.25, features_dir=tmp_path / "features").record
    predictor = featcache.predictor(run["run"], features_dir=tmp_path / "features")
    proba = predictor([path.read_bytes() for path in sorted(photos.rglob("*.png"))[:3]])
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)

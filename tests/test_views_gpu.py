"""Augmented views on a GPU: the rows of the CPU, added without computing the old ones, drawn alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
from featcache.heads.neural import LinearHead
from featcache.store.cache import Cache
from tests.kit_images import make_folder, tree

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.mark.parametrize("augment", ["flip", "crop", "jitter"])
def test_a_gpu_makes_the_views_of_the_cpu_and_adds_to_them(tmp_path: Path, augment: str) -> None:
    folder = make_folder(tmp_path / "photos")
    asked = Request(f"folder:{folder}", "squeezenet1_1", "random:0", image_size=64, views=3, augment=augment)
    slow = Settings(tmp_path / "cpu", tmp_path, "cpu", rows_per_shard=5)
    fast = replace(slow, features_dir=tmp_path / "gpu", device="cuda", batch_size=5)
    ours, theirs = extract(asked, fast), extract(asked, slow)
    for split in ("train", "test"):
        a, b = (Cache(each.path).table(split, views="all").X.astype(float) for each in (ours, theirs))
        assert np.abs(a - b).max() < 0.02 * b.std()
    other = replace(fast, features_dir=tmp_path / "added")
    extract(replace(asked, views=2), other)
    added = extract(asked, other)
    assert added.images == 24 and tree(added.path) == tree(ours.path)


def test_recorded_steps_draw_the_views_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    rows = (3 * rng.normal(size=(3, 12)))[y][:, None] + rng.normal(size=(300, 4, 12))
    X, labels = rows.reshape(-1, 12).astype(np.float16), np.repeat(y, 4)
    heads = [
        LinearHead(epochs=4, batch_size=16, patience=None, device=device).fit(X, labels, views=4)
        for device in ("cuda", "cpu")
    ]
    assert np.allclose(heads[0].coefs_[0], heads[1].coefs_[0], atol=2e-3)

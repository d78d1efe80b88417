"""Rows that another cache of the same recipe has: the same image bytes, whatever their name or label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import FeatcacheError
from featcache.store.cache import Cache
from featcache.store.folders import caches_in


def rows_elsewhere(features_dir: Path, recipe_fingerprint: str, key: str, hashes: NDArray[np.uint8]) -> int:
    """Return how many images have features by the same recipe in finished caches other than `key`'s.

    Args:
        features_dir: where the caches are.
        recipe_fingerprint: of the recipe asked for.
        key: of the cache asked for.
        hashes: (N, 16) content hash of every image; all zeros for one that cannot be read.
    """
    wanted = _as_items(hashes)
    found = np.zeros(len(wanted), dtype=np.bool_)
    for folder in caches_in(features_dir):
        try:
            cache = Cache(folder)
            if cache.key == key or cache.recipe.fingerprint != recipe_fingerprint or cache.sealed() is None:
                continue
            found |= np.isin(wanted, _as_items(cache.plan.hashes))
        except FeatcacheError:
            continue  # a damaged cache has nothing to give
    return int(np.count_nonzero(found & hashes.any(axis=1)))


def _as_items(hashes: NDArray[np.uint8]) -> NDArray[np.void]:
    """View (N, 16) bytes as (N,) items that can be compared whole."""
    return np.ascontiguousarray(hashes).view(np.dtype((np.void, hashes.shape[1]))).reshape(-1)

"""Runs to report on, made without a backbone: a cache whose images are real files, and heads on it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.images.catalogue import open_source
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.store.records import cache_key
from featcache.training.fit import Training, train
from tests.kit_caches import recipe

drawn = pytest.mark.skipif(
    not all(find_spec(name) for name in ("matplotlib", "jinja2")),
    reason='matplotlib or Jinja is missing: pip install "featcache[report]"',
)
HOSTILE = '</script><script>alert("$x$")</script>'


def cache_of(folder: Path, features_dir: Path, classes: tuple[str, ...] | None = None) -> Cache:
    """Return a finished cache of a folder of images, with random features that say something of the class."""
    dataset = open_source(f"folder:{folder}", folder).open()
    plan = Plan(dataset.ids, dataset.labels, dataset.splits, dataset.content_hashes)
    made = recipe()
    key = cache_key(made.fingerprint, dataset.fingerprint)
    record = {
        "key": key,
        "recipe": made.to_dict(),
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "classes": list(classes or dataset.classes),
            "rows": plan.counts(),
            "ignored": {"count": 0, "first": []},
        },
        "columns": {"flatten": 8},
        "rows_per_shard": 64,
        "request": {"dataset": f"folder:{folder}", "backbone": "resnet18", "layers": [], "pool": None},
        "versions": {},
    }
    cache = Cache.create(features_dir / f"{dataset.name}--resnet18--{key[:10]}", record, plan)
    return filled(cache)


def filled(cache: Cache, spread: float = 1.0) -> Cache:
    """Commit every shard of a cache with rows around a centre of each class, and seal it."""
    (width,) = cache.columns.values()
    centres = np.random.default_rng(0).normal(size=(len(cache.classes), width))
    for part in cache.todo():
        labels = cache.plan.labels[part.first : part.stop]
        noise = np.random.default_rng(part.first).normal(size=(len(part), width)) * spread
        cache.commit(part, {"flatten": (centres[labels] + noise).astype(np.float16)})
    cache.seal()
    return cache


def run_of(cache: Cache, head: str = "ridge", test: bool = True, **params: Any) -> Path:
    """Train a head and return its run's folder."""
    return train(cache, Training(head, params, test=test)).folder

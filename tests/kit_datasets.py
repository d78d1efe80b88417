"""What every data set must keep to, whatever it is made of."""

from __future__ import annotations

import numpy as np

from featcache.errors import BadImageError
from featcache.images.dataset import Dataset, content_hash, id_bytes
from featcache.images.sample import SPLITS


def check_dataset(dataset: Dataset) -> None:
    """Check order, shapes, types, images, hashes and the limited data set."""
    count = len(dataset)
    assert count == len(dataset.ids) == len(dataset.labels) == len(dataset.splits) > 0
    assert dataset.labels.dtype == np.int64 and dataset.labels.shape == (count,)
    assert dataset.splits.dtype == np.uint8 and dataset.splits.shape == (count,)
    assert dataset.splits.max() < len(SPLITS)
    assert dataset.name and all(c.isalnum() or c in "._-" for c in dataset.name)
    assert all(isinstance(name, str) for name in (*dataset.classes, *dataset.ids))
    assert len(set(dataset.ids)) == count and len(set(dataset.classes)) == len(dataset.classes)
    order = [
        (split, id_bytes(name)) for split, name in zip(dataset.splits.tolist(), dataset.ids, strict=True)
    ]
    assert order == sorted(order)
    train = dataset.labels[dataset.splits == 0]
    assert set(np.unique(dataset.labels)) <= set(np.unique(train)) <= set(range(len(dataset.classes)))
    _check_images(dataset)
    _check_limited(dataset)


def _check_images(dataset: Dataset) -> None:
    hashes = dataset.content_hashes
    assert hashes.shape == (len(dataset), 16) and hashes.dtype == np.uint8 and not hashes.flags.writeable
    assert dataset.content_hashes is hashes
    assert len(dataset.fingerprint) == 64 and int(dataset.fingerprint, 16) >= 0
    for i in {0, len(dataset) // 2, len(dataset) - 1}:
        try:
            raw = dataset.raw(i)
        except BadImageError:
            assert not hashes[i].any()
            continue
        assert hashes[i].tobytes() == content_hash(raw)
        sample = dataset.sample(i)
        assert sample.image.ndim == 3 and sample.image.shape[2] == 3 and sample.image.dtype == np.uint8
        assert np.array_equal(sample.image, dataset.image(i))
        assert sample.id == dataset.ids[i] and sample.label == dataset.labels[i]
        assert SPLITS.index(sample.split) == dataset.splits[i]


def _check_limited(dataset: Dataset) -> None:
    few = dataset.limited(2)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, key in enumerate(zip(dataset.splits.tolist(), dataset.labels.tolist(), strict=True)):
        groups.setdefault(key, []).append(i)
    rows = sorted(i for group in groups.values() for i in group[:2])
    assert few.ids == [dataset.ids[i] for i in rows]
    assert np.array_equal(few.labels, dataset.labels[rows]) and np.array_equal(
        few.splits, dataset.splits[rows]
    )
    assert few.classes == dataset.classes and few.name == dataset.name
    assert np.array_equal(few.content_hashes, dataset.content_hashes[rows])
    assert (few.fingerprint == dataset.fingerprint) == (len(few) == len(dataset))

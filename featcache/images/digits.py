"""scikit-learn's digits: 1797 grey images of 8 x 8, offline; a quarter is held out as the test split.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.images.dataset import Dataset
    from featcache.images.source import Advance


class DigitsSource:
    """The digits that come with scikit-learn, and therefore change only with it."""

    spec = "digits"
    name = "digits"

    def stat_digest(self) -> str:
        """Return a digest of scikit-learn's version."""
        from importlib.metadata import version

        return hashlib.sha256(f"digits of scikit-learn {version('scikit-learn')}".encode()).hexdigest()

    def newest_ns(self) -> int:
        """Return 0: no file can change."""
        return 0

    def open(self, progress: Advance | None = None) -> Dataset:
        """Return the digits, their values 0..16 scaled to 0..255 and rounded.

        Every class gives a quarter of its images to the test split: those of scikit-learn's
        `train_test_split` with `test_size=0.25, random_state=0`, stratified. Within a split
        the order is scikit-learn's.
        """
        import numpy as np
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        from featcache.images.dataset import Rows
        from featcache.images.stored import ArrayDataset

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        parts = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
        train, test = np.sort(parts[0]), np.sort(parts[1])
        order = np.concatenate([train, test])
        ids = [
            f"{name}/{at:06d}" for name, rows in (("train", train), ("test", test)) for at in range(len(rows))
        ]
        splits = np.repeat(np.array([0, 2], dtype=np.uint8), [len(train), len(test)])
        classes = tuple("0123456789")
        listed = Rows(self.name, classes, ids, labels[order], splits, (), progress)
        return ArrayDataset(listed, [pixels[order]])

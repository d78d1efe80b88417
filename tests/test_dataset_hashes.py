"""Content hashes: by one thread where images come from memory, by several where each has to be waited for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from featcache.images import dataset
from featcache.images.dataset import Dataset, Rows, content_hash


class Numbers(Dataset):
    """Images whose bytes are their row's number, and that note which thread read them."""

    def __init__(self, n: int, seconds: float) -> None:
        super().__init__(
            Rows("numbers", ("a",), [f"{i}" for i in range(n)], np.zeros(n, np.int64), np.zeros(n, np.uint8))
        )
        self.seconds, self.threads = seconds, set[int]()

    def raw(self, i: int) -> bytes:
        """Return the number in digits."""
        time.sleep(self.seconds)
        self.threads.add(threading.get_ident())
        return b"%d" % i


@pytest.mark.parametrize(("n", "seconds"), [(0, 0), (1, 0), (2000, 0), (100, 0.002), (513, 0.0)])
def test_every_image_has_its_hash(n: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_SHARE", 16)
    monkeypatch.setattr(dataset, "_QUICK", 1e-3 if seconds else 10.0)
    made = Numbers(n, seconds)
    assert [row.tobytes() for row in made.content_hashes] == [content_hash(b"%d" % i) for i in range(n)]
    if seconds:
        assert len(made.threads) > 2, "each has to be waited for: several at once"
    elif n:
        assert made.threads == {threading.get_ident()}

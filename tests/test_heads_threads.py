"""Small problems take one BLAS thread, large ones what there is, and afterwards all is as before."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from featcache.heads.threads import threads_for


def _threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_threads() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = _threads()
    with threads_for(1000):
        assert set(_threads()) == {1}
    assert _threads() == before
    with threads_for(1 << 40):
        assert _threads() == before
    with pytest.raises(KeyboardInterrupt), threads_for(1):
        raise KeyboardInterrupt
    assert _threads() == before

"""The layout of a shard: pieces laid over HDF5's own bytes are what HDF5 would write."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featcache import atomic
from featcache.store import layout, shard


def arrays(n: int, widths: dict[str, int], dtype: str, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    features = {node: rng.normal(size=(n, width)).astype(dtype) for node, width in widths.items()}
    status = rng.integers(0, 2, n).astype(np.uint8)
    return shard.arrays(features, rng.integers(0, 99, n), rng.integers(0, 10**12, n), status)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 300),
    widths=st.dictionaries(
        st.sampled_from(["flatten", "a.b", "layer4.1", "z"]), st.integers(1, 999), min_size=1
    ),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_the_pieces_are_the_file_that_hdf5_writes(n: int, widths: dict[str, int], dtype: str) -> None:
    for seed in (0, 1):  # the second time the layout is known
        named = arrays(n, widths, dtype, seed)
        assert b"".join(layout.pieces(named)) == layout.write(named)


def test_no_feature_is_copied() -> None:
    named = arrays(64, {"flatten": 512}, "float16")
    pieces = layout.pieces(named)
    addresses = {np.frombuffer(piece, np.uint8).ctypes.data for piece in pieces}
    assert named["features"].ctypes.data in addresses
    named["features"][3, 5] = 7
    assert b"".join(pieces) == layout.write(named)


def test_what_is_not_contiguous_is_laid_out_by_value() -> None:
    named = arrays(8, {"flatten": 6}, "float32")
    turned = named | {"features": np.asfortranarray(named["features"])}
    assert b"".join(layout.pieces(turned)) == layout.write(named)


def test_the_hash_does_not_depend_on_the_cuts() -> None:
    pieces = layout.pieces(arrays(50, {"flatten": 100}, "float16"))
    assert layout.hash_of(pieces) == layout.hash_of([b"".join(pieces)]) == shard.hash_of(b"".join(pieces))


def test_pieces_are_written_as_one_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    class Slow(atomic.Calls):
        """Writes 1000 bytes a call at most, as a pipe or a signal may make it do."""

        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, data[:1000])

    monkeypatch.setattr(atomic, "calls", Slow())
    pieces = layout.pieces(arrays(20, {"flatten": 300}, "float16"))
    atomic.write(tmp_path / "file", pieces)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)

"""Arrays and one JSON text in the bytes of a safetensors file. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.recipe import canonical_json

HEADER_LIMIT = 100_000_000  # bytes, as safetensors has it
_KEY = "featcache"
_SUM = "xxh3_128"  # absent from the files of before it was known


def pack(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file; the same content gives the same bytes.

    Raises:
        HeadError: `meta` is not plain JSON.
    """
    from safetensors.numpy import save

    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        text = canonical_json({**meta, _SUM: _sum(plain, meta)})
    except (TypeError, ValueError) as error:
        raise HeadError(f"This cannot be saved as plain JSON: {error}.") from error
    data: bytes = save(plain, {_KEY: text})
    return data


def _sum(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> str:
    """Return the xxh3-128 over the description and every array's name, dtype, shape and bytes."""
    digest = xxhash.xxh3_128(canonical_json(meta).encode())
    for name, array in sorted(arrays.items()):
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def meta_of(data: bytes, version: int) -> dict[str, Any]:
    """Return the JSON values in the header of the bytes; their key "format" must be `version`.

    Raises:
        HeadError: there are none, or they are of another format.
    """
    meta = _described(data)
    meta.pop(_SUM, None)
    found = meta.get("format")
    if type(found) is not int or found != version:
        raise HeadError(
            f"Unknown head format {found!r}: this featcache reads format {version}.",
            "A newer featcache may read it: pip install --upgrade featcache.",
        )
    return meta


def _described(data: bytes) -> dict[str, Any]:
    try:
        size = int.from_bytes(data[:8], "little")
        if not 2 <= size <= min(len(data) - 8, HEADER_LIMIT):
            raise ValueError("no header")
        meta: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
        if not isinstance(meta, dict) or "format" not in meta:
            raise ValueError("no description")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HeadError(
            f"These bytes are not a head or training state of featcache ({type(error).__name__}).",
            "Give a file that featcache saved.",
        ) from error
    return meta


def arrays_of(data: bytes, old: bool = True) -> dict[str, NDArray[Any]]:
    """Return the arrays in the bytes, checked against the checksum; an `old` file need not have one.

    Raises:
        HeadError: they are cut off, overlap, differ or are otherwise not as their header says.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, NDArray[Any]] = load(data)
        meta = _described(data)
        expected = meta.pop(_SUM, None)
        same = (old and expected is None) or expected == _sum(arrays, meta)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(str(error)) from error
    if not same:
        raise damaged("its content differs from its own checksum")
    return arrays


def damaged(what: str) -> HeadError:
    """Return the error for a file whose content contradicts itself."""
    return HeadError(f"The head's file is damaged: {what}.", "Train it again, or take it from a copy.")

"""A head as one safetensors file: its arrays, and one JSON text that says everything else. Never pickle.

The metadata's only key is "featcache": format, kind, params, columns, classes, attributes (fitted plain
values) and context, whatever the caller wants to remember about the features the head was fitted to; and
temperature, where the head is calibrated.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import limits
from featcache.errors import HeadError
from featcache.heads.base import ArraySpec, Head
from featcache.heads.calibration import LEAST, MOST
from featcache.heads.catalogue import create
from featcache.heads.packing import HEADER_LIMIT, arrays_of, damaged, meta_of, pack

FORMAT = 1
_KEYS = {"format", "kind", "params", "columns", "classes", "attributes", "fit_seconds", "context"}
_CALIBRATED = "temperature"  # a key only calibrated heads have
_LABELS = re.compile(r"object|bool|<U\d{1,6}|u?int(8|16|32|64)|float(16|32|64)")


def dumps(head: Head, context: Mapping[str, Any] | None = None) -> bytes:
    """Return a fitted head as the bytes of a safetensors file; the same head gives the same bytes.

    `context` is plain JSON for `context_of` and `check_fit`; its key "columns" is filled in where missing.

    Raises:
        HeadError: the head is not fitted, or its labels or the context cannot be written as JSON.
    """
    if not hasattr(head, "fit_seconds_"):
        raise HeadError(
            f"This {type(head).__name__} is not fitted: there is nothing to save.", "Call fit first."
        )
    meta = {
        "format": FORMAT,
        "kind": head.KIND,
        "params": {name: _plain(value) for name, value in head.get_params(deep=False).items()},
        "columns": int(head.n_features_in_),
        "classes": _labels(head.classes_),
        "attributes": {name: getattr(head, name) for name in head.ATTRIBUTES},
        "fit_seconds": float(head.fit_seconds_),
        "context": {"columns": int(head.n_features_in_), **(context or {})},
    }
    if hasattr(head, "temperature_"):
        meta[_CALIBRATED] = float(head.temperature_)
    return pack({name: _held(head, name) for name in _specs(head)}, meta)


def loads(source: bytes | str | Path) -> Head:
    """Return the head in the bytes, or in the file of that path; it predicts exactly what was saved.

    Raises:
        HeadError: it is not a head of this format, or something in it is missing, unknown or malformed.
    """
    data = source if isinstance(source, bytes) else _read(Path(source))
    meta = _meta(data)
    try:
        head = create(meta["kind"], **{name: _tuples(value) for name, value in meta["params"].items()})
        head.n_features_in_ = _whole(meta["columns"])
        head.classes_ = _classes(meta["classes"])
        head.fit_seconds_ = float(meta["fit_seconds"])
        _set_attributes(head, meta["attributes"])
        if _CALIBRATED in meta:
            head.temperature_ = _temperature(meta[_CALIBRATED])
    except HeadError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from error
    _set_arrays(head, arrays_of(data))
    if head.damage():
        raise damaged(head.damage())
    return head


def numbers(head: Head) -> tuple[int, int]:
    """Return how many numbers a fitted head learned, and how many it holds with mean and scale.

    All that is stored counts: of knn the training rows, of a tree its splits.
    """
    sizes = {name: int(_held(head, name).size) for name in _specs(head)}
    whole = sum(sizes.values())
    return whole - sizes.get("mean_", 0) - sizes.get("scale_", 0), whole


def context_of(source: bytes | str | Path) -> dict[str, Any]:
    """Return the context that a head was saved with; of a file only the header is read.

    Raises:
        HeadError: it is not a head of this format.
    """
    meta = _meta(source if isinstance(source, bytes) else _read(Path(source), header_only=True))
    context: dict[str, Any] = meta["context"]
    return context


def check_fit(
    head_context: Mapping[str, Any], *, fingerprint: str, node: str, columns: int, classes: Sequence[Any]
) -> None:
    """Refuse features other than those that a head was fitted to.

    Raises:
        HeadError: saying of each thing that differs what the head expects and what was given.
    """
    given = {"fingerprint": fingerprint, "node": node, "columns": columns, "classes": list(classes)}
    lines = []
    for name, got in given.items():
        expected = head_context.get(name)
        expected = list(expected) if isinstance(expected, (list, tuple)) else expected
        if expected != got:
            lines.append(f"{name}: expected {_short(expected)}, got {_short(got)}")
    if lines:
        raise HeadError(
            f"This head was trained on other features; {'; '.join(lines)}.",
            "Use the cache it was trained on, or train a head on this one.",
        )


def _specs(head: Head) -> dict[str, ArraySpec]:
    column = ArraySpec((head.n_features_in_,))
    return ({"mean_": column, "scale_": column} if head.standardizes else {}) | head.arrays()


def _held(head: Head, name: str) -> NDArray[Any]:
    attribute, _, position = name.partition(".")
    value = getattr(head, attribute)
    array: NDArray[Any] = value[int(position)] if position else value
    return array


def _set_arrays(head: Head, tensors: Mapping[str, NDArray[Any]]) -> None:
    specs = _specs(head)
    if set(specs) != set(tensors):
        raise damaged(f"expected the arrays {', '.join(sorted(specs))}; got {', '.join(sorted(tensors))}")
    head.mean_ = head.scale_ = None
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        _check_array(name, tensors[name], spec, sizes)
        attribute, _, position = name.partition(".")
        if not position:
            setattr(head, attribute, tensors[name])
        else:  # layers come in order
            setattr(head, attribute, [*(getattr(head, attribute, [])), tensors[name]])


def _check_array(name: str, array: NDArray[Any], spec: ArraySpec, sizes: dict[str, int]) -> None:
    expected = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape)
    fits = len(expected) == array.ndim and all(
        isinstance(e, str) or e == got for e, got in zip(expected, array.shape, strict=True)
    )
    if not fits or array.dtype.name not in spec.dtypes:
        wanted = f"{' or '.join(spec.dtypes)} ({', '.join(map(str, expected))})"
        raise damaged(f"{name}: expected {wanted}, got {array.dtype.name} {array.shape}")
    sizes |= {size: got for size, got in zip(spec.shape, array.shape, strict=True) if isinstance(size, str)}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise damaged(f"{name} holds NaN or infinity")
    if name == "scale_" and not (array > 0).all():
        raise damaged("scale_ must be positive")


def _set_attributes(head: Head, attributes: Mapping[str, Any]) -> None:
    if set(attributes) != set(head.ATTRIBUTES):
        raise damaged(f"expected the values {', '.join(head.ATTRIBUTES)}; got {', '.join(attributes)}")
    for name, kind in head.ATTRIBUTES.items():
        if type(attributes[name]) is not kind:
            raise damaged(f"{name}: expected {kind.__name__}, got {attributes[name]!r}")
        setattr(head, name, attributes[name])


def _meta(data: bytes) -> dict[str, Any]:
    meta = meta_of(data, FORMAT)
    plain = (meta.get(key) for key in ("params", "attributes", "context"))
    if set(meta) - {_CALIBRATED} != _KEYS or not all(isinstance(value, dict) for value in plain):
        raise damaged("keys of its description are missing, unknown or of the wrong type")
    return meta


def _read(path: Path, header_only: bool = False) -> bytes:
    try:
        # A pipe must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise HeadError(f"The head {path} is no regular file.")
            start = file.read(8)
            size = int.from_bytes(start, "little")
            if header_only:
                return start + file.read(min(size, HEADER_LIMIT))
            most = limits.RUN_FILE_BYTES()
            if (length := os.fstat(file.fileno()).st_size) > most:
                raise HeadError(
                    f"The head {path} has {length} bytes, at most {most} are read.",
                    f"{limits.RUN_FILE_BYTES.variable} sets the limit.",
                )
            return start + file.read()
    except OSError as error:
        raise HeadError(f"The head {path} cannot be read: {error.strerror or error}.") from error


def _labels(classes: NDArray[Any]) -> dict[str, Any]:
    values = classes.tolist()
    if _LABELS.fullmatch(_type_name(classes)) is None or not all(
        type(v) in (str, int, bool, float) for v in values
    ):
        raise HeadError(f"Class labels of type {classes.dtype} cannot be saved.", "Use str or int labels.")
    return {"dtype": _type_name(classes), "values": values}


def _classes(labels: Mapping[str, Any]) -> NDArray[Any]:
    dtype, values = labels["dtype"], labels["values"]
    if _LABELS.fullmatch(dtype) is None or not isinstance(values, list):
        raise ValueError(f"class labels of type {dtype!r}")
    if len(values) < 2 or not all(type(value) in (str, int, bool, float) for value in values):
        raise ValueError("class labels must be at least two numbers or names")
    classes = np.array(values, dtype=dtype)
    if _labels(classes) != labels or sorted(set(values)) != values:
        raise ValueError("class labels must be sorted, and each of the type stated")
    return classes


def _type_name(classes: NDArray[Any]) -> str:
    return classes.dtype.newbyteorder("<").str if classes.dtype.kind == "U" else classes.dtype.name


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"columns must be a positive integer, got {value!r}")
    return value


def _temperature(value: Any) -> float:
    if type(value) is not float or not LEAST <= value <= MOST:
        raise ValueError(f"temperature must be a number from {LEAST:g} to {MOST:g}, got {value!r}")
    return value


def _short(value: Any) -> str:
    if value is None:
        return "nothing recorded"
    text = f"{len(value)} ({', '.join(map(str, value))})" if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

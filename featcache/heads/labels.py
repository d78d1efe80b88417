"""From labels to class codes, where some labels are of no class that a head knows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError

UNKNOWN = -1  # the code of a row whose class has no training rows


def encoded(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of each label (N,) in `classes` (C,), `UNKNOWN` where it is none of them."""
    codes = {label: code for code, label in enumerate(classes.tolist())}
    return np.array([codes.get(label, UNKNOWN) for label in labels.tolist()], dtype=np.int64)


def strangers_note(labels: NDArray[Any], codes: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the note on validation rows of classes without training rows; none where there are none."""
    unknown = codes == UNKNOWN
    count, of = int(unknown.sum()), len(codes)
    if not count:
        return ()
    effect = "validation chose nothing" if count == of else "they count as errors"
    which = f"{count} of {of} validation rows are of classes without training rows"
    return (f"{which} ({named(labels[unknown])}): {effect}.",)


def check_known(labels: NDArray[Any], codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows to calibrate on (N,) are of a known class.

    Raises:
        HeadError: none is.
    """
    known: NDArray[np.bool_] = codes != UNKNOWN
    if not known.any():
        raise HeadError(
            f"No row to calibrate on is of a class that the head knows: {named(labels)}.",
            "Calibrate on rows of the classes it was trained on.",
        )
    return known


def named(labels: NDArray[Any]) -> str:
    """Return the first few of the different labels, as text."""
    names = sorted(set(labels.tolist()), key=str)
    return ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")

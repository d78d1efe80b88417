"""What a run cost, put together from what was measured while it was fitted and what was stored of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from featcache.costs import Costs
from featcache.heads import saving
from featcache.heads.base import Head
from featcache.training.predictions import Prediction


def completed(
    spent: Costs, facts: Mapping[str, Any], head: Head, stored: bytes, found: Sequence[Prediction]
) -> Costs:
    """Return costs with what is known when a run is stored: its size, and its predictions' time.

    Args:
        spent: measured while the head was fitted.
        facts: of the run: `train_rows`, and `epochs`, None for a head that is not trained by epochs.
        head: fitted.
        stored: the head's file.
        found: all predictions of the run.
    """
    learned, numbers = saving.numbers(head)
    views = facts.get("views") or {}
    each = views["count"] if views.get("mode") == "all" else 1  # how often a row is seen in an epoch
    return replace(
        spent,
        fit_rows=facts["train_rows"] * each * (facts["epochs"] or 1),
        predict_seconds=round(sum(one.seconds for one in found), 6) if found else None,
        predict_rows=sum(len(one.rows) for one in found) if found else None,
        parameters_trained=learned,
        parameters=numbers,
        disk_bytes=len(stored),
    )

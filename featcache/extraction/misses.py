"""Why it is a miss: the nearest caches, and what differs from them, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError
from featcache.recipe import differences
from featcache.store import records
from featcache.store.folders import caches_in


def explain_miss(features_dir: Path, recipe: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[str]:
    """Return a sentence for the nearest cache, none where there is nothing near.

    Args:
        features_dir: where the caches are.
        recipe: the recipe asked for, as plain values.
        dataset: name, fingerprint, classes and rows of the data set asked for.
    """
    near: list[tuple[int, str]] = []
    for folder in caches_in(features_dir):
        try:
            theirs = records.read_recipe(folder)
        except FeatcacheError:
            continue  # a damaged cache is near to nothing
        lines = differences(theirs["recipe"], recipe)
        if theirs["dataset"]["fingerprint"] == dataset["fingerprint"] and lines:
            near.append((len(lines), f"Not {folder.name}: same data, recipe differs: {'; '.join(lines)}."))
        elif not lines and theirs["dataset"]["name"] == dataset["name"]:
            near.append(
                (0, f"Not {folder.name}: same recipe, data differs: {_data(theirs['dataset'], dataset)}.")
            )
    return [text for _, text in sorted(near)[:1]]


def _data(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    fields = ("classes", "rows")
    lines = differences({f: theirs.get(f) for f in fields}, {f: ours.get(f) for f in fields})
    return "; ".join(lines) or "the content, name, label or order of an image"

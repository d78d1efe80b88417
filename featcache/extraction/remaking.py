"""Could a cache be made again? Its images and weights are looked for, not read."""

from __future__ import annotations

from pathlib import Path

from featcache.backbones.weights import FILE
from featcache.errors import FeatcacheError
from featcache.extraction.request import Request
from featcache.images.catalogue import open_source
from featcache.images.torchvision_sets import SETS
from featcache.store.cache import Cache


def why_last(cache: Cache, features_dir: Path, data_dir: Path) -> str:
    """Return why a cache could not be computed again, "" where its images and weights are there.

    Data sets known by name can be downloaded again. Images in files must all be listed where they were; what
    is in them is not read.
    """
    try:
        request = Request.from_dict(cache.record["request"])
    except (FeatcacheError, TypeError, KeyError, ValueError):
        return "it does not say what it was made from"
    if cache.recipe.weights.name == FILE and not Path(request.weights).expanduser().is_file():
        return f"its weights are no longer at {request.weights}"
    if request.dataset in SETS or request.dataset == "digits":
        return ""
    try:
        source = open_source(request.dataset, data_dir, download=False, exclude=(features_dir, data_dir))
        there = set(source.open().ids)
        missing = next((name for name in cache.plan.ids if name not in there), None)
    except FeatcacheError as error:
        return f"its images are gone: {error.message}"
    return "" if missing is None else f"its image {missing} is no longer in {request.dataset}"

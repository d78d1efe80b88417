"""Repair: compute the damaged and missing shards of a cache again, and only those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from featcache.errors import CacheError
from featcache.extraction import pipeline
from featcache.extraction.extract import open_job
from featcache.extraction.request import Request, Settings
from featcache.images.catalogue import open_source
from featcache.progress import Progress, silent
from featcache.store.cache import Cache


def repair(
    path: Path, settings: Settings, dataset: str | None = None, progress: Progress = silent
) -> list[str]:
    """Compute the damaged and missing shards of a cache again; return their names.

    Args:
        path: the cache's folder.
        settings: device, batch size, workers, where data sets are.
        dataset: where the images are now, if not where they were.
        progress: told the images done.

    Raises:
        CacheError: the images or weights found now are not those of the cache.
        DamagedError: `recipe.json` or the plan is damaged, which nothing can mend.
    """
    cache = Cache(path)
    cache.discard_damaged_records()
    damaged = [part for part, wrong in cache.verify() if wrong]
    if damaged:
        request = Request.from_dict(cache.record["request"])
        if dataset is not None:
            request = replace(request, dataset=dataset)
        job = open_job(request, open_source(request.dataset, settings.data_dir), settings, progress)
        if job.key != cache.key:
            raise CacheError(
                f"The images or weights found now are not those {cache.name} was made from.",
                "Say where they are with --dataset, or extract into a new cache.",
            )
        for part in damaged:
            cache.discard(part)
        extractor = job.extractor(settings.device)
        pipeline.run(
            cache,
            job.dataset,
            extractor,
            batch_size=settings.batch_size or pipeline.default_batch_size(extractor),
            workers=settings.workers,
            max_pixels=request.max_pixels,
            skip_bad=True,
            parts=damaged,
            progress=progress,
        )
    cache.seal()
    return [part.name for part in damaged]

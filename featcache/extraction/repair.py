"""Repair: compute the damaged and missing shards of a cache again, and only those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from featcache.errors import CacheError, DamagedError
from featcache.extraction import pipeline
from featcache.extraction.batch_size import for_cache
from featcache.extraction.copying import share_of
from featcache.extraction.extract import open_job, source_of
from featcache.extraction.request import Request, Settings
from featcache.extraction.resolve import Job
from featcache.extraction.runtime import take_runtime
from featcache.progress import Progress, silent
from featcache.store import claims, mending
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan


def repair(
    path: Path,
    settings: Settings,
    dataset: str | None = None,
    weights: str | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Compute the damaged and missing shards of a cache again; write plan and seal anew where damaged.

    Args:
        path: the cache's folder.
        settings: device, batch size, workers, where data sets are.
        dataset: where the images are now, if not where they were.
        weights: where the weights are now, if not where they were.
        progress: told the images done.

    Returns:
        The names of the shards that were computed again.

    Raises:
        CacheError: the images or weights found now are not those of the cache.
        DamagedError: `recipe.json` is damaged.
    """
    cache = Cache(path)
    request = Request.from_dict(cache.record["request"])
    request = replace(request, dataset=dataset or request.dataset, weights=weights or request.weights)
    job = None if _has_plan(cache) else _job(cache, request, settings, progress)
    cache = Cache(path)
    mending.discard_damaged_records(cache)
    damaged = [part for part, wrong in cache.verify() if wrong]
    if damaged:
        job = job or _job(cache, request, settings, progress)
        _compute(cache, job, settings, damaged, progress)
    cache.seal()
    return [part.name for part in damaged]


def _has_plan(cache: Cache) -> bool:
    try:
        return len(cache.plan) >= 0
    except DamagedError:
        return False


def _job(cache: Cache, request: Request, settings: Settings, progress: Progress) -> Job:
    """Open the images and weights, check that they are those of the cache, and see to its plan."""
    job = open_job(request, source_of(request, settings), progress, settings.decode_in != "threads")
    if job.key != cache.key or not mending.restore_plan(cache, job.plan()):
        raise CacheError(
            f"The images or weights found now are not those {cache.name} was made from.",
            "Say where they are with --dataset and --weights, or extract into a new cache.",
        )
    return job


def _compute(
    cache: Cache, job: Job, settings: Settings, damaged: list[ShardPlan], progress: Progress
) -> None:
    for part in damaged:
        mending.discard(cache, part)
    claims.forget(cache.path)
    extractor = job.extractor(settings.device)
    images = sum(len(part) for part in damaged)
    take_runtime(job, extractor, settings, images, cache.path.name)
    pipeline.run(
        cache,
        job.dataset,
        extractor,
        batch_size=for_cache(settings.batch_size, extractor, cache),
        workers=settings.workers,
        max_pixels=job.request.max_pixels,
        skip_bad=True,
        parts=damaged,
        progress=progress,
        contained=settings.decode_in != "threads",
        share=share_of(cache),
    )

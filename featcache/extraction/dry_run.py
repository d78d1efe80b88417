"""A dry run: everything an extraction would decide, need and cost, and nothing written."""

from __future__ import annotations

from collections import Counter
from typing import Any

from featcache.extraction import memory
from featcache.extraction.contained import contained
from featcache.extraction.copying import Expected, Share, expected, expected_of
from featcache.extraction.estimate import check_space, free_bytes, measured_rate, needed_bytes
from featcache.extraction.extract import folder_with_key, open_job, source_of
from featcache.extraction.known import known_files
from featcache.extraction.pipeline import default_batch_size
from featcache.extraction.possible import check_possible
from featcache.extraction.request import Request, Settings
from featcache.extraction.resolve import Job
from featcache.extraction.runtime import take_runtime
from featcache.extraction.siblings import siblings
from featcache.extraction.views import forward_passes
from featcache.progress import Progress, silent
from featcache.recipe import ITEMSIZES
from featcache.store import keeping, records
from featcache.store.cache import Cache


def dry_run(request: Request, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Return what `extract` would do.

    Returns:
        `cache` (path), `hit`, `fingerprint`, `images`, `rows` (per split), `rows_there` (rows already
        committed), `views` (that all rows hold together), `copied` (of them to be copied from finished
        caches of the same recipe, or from an equal image), `views_left` (to be embedded), `nodes` (node → D),
        `columns`, `bytes_per_image`, `bytes` (still to write), `free_bytes`,
        `images_per_second` (measured on a few batches; None for a hit), `seconds`, `runtime`.

    Raises:
        SpaceError: the disk has no room for it.
        FeatcacheError: as `extract`.
    """
    source = source_of(request, settings)
    known = memory.recall(settings.features_dir, memory.sight(request, source).request_id)
    if known is not None:
        return _of_cache(Cache(known[0]), settings)
    check_possible(request, settings)
    files = known_files(settings.features_dir, request, keep=False)
    job = open_job(request, source, progress, contained(settings), files)
    folder = folder_with_key(settings.features_dir, job.key)
    cache = None if folder is None else Cache(folder)
    if cache is not None and not cache.todo():
        return _of_cache(cache, settings)
    name = folder.name if folder else records.folder_name(job.dataset.name, job.recipe.backbone, job.key)
    return _of_job(job, settings, name, cache)


def _of_job(job: Job, settings: Settings, name: str, cache: Cache | None) -> dict[str, Any]:
    """Return what is left to do for a cache of a name, which may have been begun."""
    plan = job.plan()
    todo = plan.counts() if cache is None else Counter[str]()
    for part in cache.todo() if cache is not None else ():
        todo[part.split] += len(part)
    there = len(job.dataset) - sum(todo.values())
    extractor = job.extractor(settings.device)
    batch_size = settings.batch_size or default_batch_size(extractor)
    ahead = _ahead(job, settings, cache, extractor.columns)
    left = ahead.left
    take_runtime(job, extractor, settings, left, name, remember=False)
    measured = measured_rate(job, extractor, batch_size, settings.workers)
    record = job.record(measured["columns"], settings.rows_per_shard)
    itemsize = ITEMSIZES[job.recipe.store_dtype]
    needed = needed_bytes(job.recipe, plan, measured["columns"], record["rows_per_shard"], todo)
    check_space(settings.features_dir, needed)
    return {
        "cache": keeping.shown(settings.features_dir / name),
        "hit": False,
        "fingerprint": job.key,
        "images": len(job.dataset),
        "rows": record["dataset"]["rows"],
        "rows_there": there,
        "views": forward_passes(job.recipe, plan.counts()),
        "copied": ahead.copied,
        "views_left": left,
        "nodes": measured["columns"],
        "columns": next(iter(measured["columns"].values())),
        "bytes_per_image": sum(measured["columns"].values()) * itemsize,
        "bytes": needed,
        "free_bytes": free_bytes(settings.features_dir),
        "images_per_second": measured["images_per_second"],
        "seconds": round(left / measured["images_per_second"], 1),
        "runtime": extractor.runtime,
    }


def _ahead(job: Job, settings: Settings, cache: Cache | None, columns: dict[str, int]) -> Expected:
    """Return what of the rows left is computed and copied."""
    if cache is not None:
        return expected_of(cache, cache.todo())
    plan = job.plan()
    shards = list(plan.shards(job.record(columns, settings.rows_per_shard)["rows_per_shard"]))
    sources = siblings(settings.features_dir, job.recipe, job.key, job.dataset.fingerprint)
    return expected(Share(job.recipe, plan, shards, None, sources, check=False), shards)


def _of_cache(cache: Cache, settings: Settings) -> dict[str, Any]:
    itemsize = ITEMSIZES[cache.recipe.store_dtype]
    return {
        "cache": keeping.shown(cache.path),
        "hit": True,
        "fingerprint": cache.key,
        "images": len(cache.plan),
        "rows": cache.plan.counts(),
        "rows_there": len(cache.plan),
        "views": forward_passes(cache.recipe, cache.plan.counts()),
        "copied": 0,
        "views_left": 0,
        "nodes": cache.columns,
        "columns": cache.columns[cache.nodes[0]],
        "bytes_per_image": sum(cache.columns.values()) * itemsize,
        "bytes": 0,
        "free_bytes": free_bytes(settings.features_dir),
        "images_per_second": None,
        "seconds": 0.0,
        "runtime": None,
    }

"""Extract: the whole way from a request to a sealed cache, or straight to the one there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import DatasetError
from featcache.extraction import memory
from featcache.extraction.contained import contained
from featcache.extraction.possible import check_possible
from featcache.extraction.request import Request, Settings
from featcache.images.catalogue import open_source
from featcache.images.sample import SPLITS
from featcache.progress import Progress, silent
from featcache.store import keeping, records
from featcache.store.recent import mark_used

if TYPE_CHECKING:
    from featcache.backbones.runtime import Extractor
    from featcache.extraction.resolve import Job
    from featcache.images.dataset import Dataset
    from featcache.images.source import Source
    from featcache.store.cache import Cache

Notify = Callable[[str], None]


@dataclass
class Extraction:
    """What an extraction found or did."""

    path: Path
    hit: bool
    fingerprint: str
    rows: dict[str, int]
    nodes: dict[str, int]  # node → D
    bytes: int
    bad_images: int
    seconds: float
    images: int = 0  # embedded by this call
    extraction_seconds: float = 0.0  # of them, without set-up
    runtime: str | None = None  # what ran the backbone, None where nothing was embedded
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the documented keys of `featcache extract --json`."""
        rate = self.images / self.extraction_seconds if self.extraction_seconds else None
        return {
            "cache": keeping.shown(self.path),
            "hit": self.hit,
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "columns": next(iter(self.nodes.values())),
            "nodes": self.nodes,
            "bytes": self.bytes,
            "images_per_second": None if rate is None else round(rate, 2),
            "seconds": round(self.seconds, 3),
            "bad_images": self.bad_images,
            "runtime": self.runtime,
        }


def extract(
    request: Request, settings: Settings, progress: Progress = silent, notify: Notify = lambda text: None
) -> Extraction:
    """Return the cache of a request; compute what of it is missing.

    Raises:
        FeatcacheError: see its subclasses; nothing that was committed is ever lost.
    """
    begin = time.perf_counter()
    source = source_of(request, settings)
    before = memory.sight(request, source)
    known = memory.recall(settings.features_dir, before.request_id)
    if known is not None:
        found = _found(*known, begin)
    else:
        check_possible(request, settings)
        job = open_job(request, source, progress, contained(settings))
        for note in job.notes:
            notify(note)
        job.key  # noqa: B018  # by now every image and the weights have been read once
        after = memory.sight(request, source_of(request, settings))
        found = _extract(job, settings, begin, progress, notify)
        memory.remember(settings.features_dir, found.path, before, after, job.weights_before)
    _refuse_bad(found, settings)
    mark_used(settings.features_dir, found.path.name)
    return found


def source_of(request: Request, settings: Settings) -> Source:
    """Return the source of a request's images; what featcache itself keeps beside them is no part of it."""
    ours = (settings.features_dir, keeping.shown(settings.features_dir), settings.data_dir)
    return open_source(request.dataset, settings.data_dir, exclude=ours)


def open_job(request: Request, source: Source, progress: Progress, contained: bool = False) -> Job:
    """Open the data set and the backbone of a request; `contained`: decode in processes that may die.

    Raises:
        DatasetError, BackboneError, WeightsError: they cannot be had.
    """
    from featcache.extraction.resolve import resolve

    dataset = open_dataset(request, source, progress)
    return resolve(request, dataset, progress, contained)


def open_dataset(request: Request, source: Source, progress: Progress) -> Dataset:
    """Open a data set, cut to the request's limit.

    Raises:
        DatasetError: it cannot be had.
    """
    dataset = source.open(lambda done, total: progress("reading", done, total))
    return dataset if request.limit is None else dataset.limited(request.limit)


def _extract(job: Job, settings: Settings, begin: float, progress: Progress, notify: Notify) -> Extraction:
    """Return the finished cache of a job, computing what of it is missing."""
    from featcache.store.cache import Cache

    features_dir = settings.features_dir
    existing = folder_with_key(features_dir, job.key)
    seal = None if existing is None else records.check_sealed(existing, job.key)
    if existing is not None and seal is not None:
        return _found(existing, seal, begin)
    if existing is None:
        from featcache.extraction.misses import explain_miss

        for text in explain_miss(features_dir, job.recipe.to_dict(), job.dataset_record()):
            notify(text)
    cache = None if existing is None else Cache(existing)
    return _fill(job, settings, cache, begin, progress, notify)


def _fill(
    job: Job, settings: Settings, cache: Cache | None, begin: float, progress: Progress, notify: Notify
) -> Extraction:
    """Compute what is missing and seal the cache."""
    from featcache.extraction import several
    from featcache.extraction.batch_size import for_cache
    from featcache.extraction.contained import apart, in_hand
    from featcache.extraction.copying import notes_of, passes_left
    from featcache.extraction.runtime import offer_bf16, take_runtime
    from featcache.extraction.speeds import forget_begun

    devices = several.devices_of(settings.device)
    extractor = job.extractor(devices[0])
    if cache is None:
        cache = _create(job, settings, dict(extractor.columns))
        forget_begun(settings.features_dir, cache.name)
    job.contained = apart(settings, cache.name)
    todo = cache.todo()
    rows = sum(len(part) for part in todo)
    if rows < len(cache.plan):
        notify(f"Going on with {cache.name}: {len(cache.plan) - rows} of {len(cache.plan)} rows are there.")
    for note in notes_of(cache):
        notify(note)
    left = passes_left(cache, todo)
    with in_hand(settings, cache.name):
        if len(devices) == 1:
            take_runtime(job, extractor, settings, left, cache.name, notify)
            offer_bf16(job, extractor, settings, left, notify)
        size = for_cache(settings.batch_size, extractor, cache)
        settings = replace(settings, batch_size=size)
        start = time.perf_counter()
        if len(devices) == 1:
            images = compute(cache, job, extractor, settings, progress)
        else:
            images = several.run(cache, job.request, settings, progress)
    runtime = extractor.runtime if len(devices) == 1 else several.runtime_of(settings)
    seconds = time.perf_counter() - start
    found = _found(cache.path, cache.seal(), begin, hit=False)
    found.images, found.extraction_seconds, found.runtime = images, seconds, runtime
    where = ",".join(devices)
    facts = {"device": where, "runtime": found.runtime, "batch_size": size, "images": images}
    times = {"seconds": seconds, "total_seconds": found.seconds}
    memory.record_extraction(settings.features_dir, cache.name, facts | times)
    return found


def compute(
    cache: Cache, job: Job, extractor: Extractor, settings: Settings, progress: Progress, rest: bool = True
) -> int:
    """Compute what a cache lacks on one device; return the number of images embedded, views included.

    With `rest`, what other processes have in hand too, in the end. Views that another cache has are copied.

    Raises:
        DatasetError, CacheError: as `pipeline.run`.
    """
    from featcache.extraction import pipeline
    from featcache.extraction.batch_size import for_cache
    from featcache.extraction.copying import source_of as copies_of

    return pipeline.run(
        cache,
        job.dataset,
        extractor,
        batch_size=for_cache(settings.batch_size, extractor, cache),
        workers=settings.workers,
        max_pixels=job.request.max_pixels,
        skip_bad=settings.on_bad_image == "skip",
        progress=progress,
        rest=rest,
        source=copies_of(cache),
        contained=job.contained,
    )


def _create(job: Job, settings: Settings, columns: dict[str, int]) -> Cache:
    from featcache.extraction.estimate import check_space, needed_bytes
    from featcache.store.cache import Cache

    record, plan = job.record(columns, settings.rows_per_shard), job.plan()
    needed = needed_bytes(job.recipe, plan, columns, record["rows_per_shard"], plan.counts())
    check_space(settings.features_dir, needed)
    name = records.folder_name(job.dataset.name, job.recipe.backbone, job.key)
    return Cache.create(settings.features_dir / name, record, plan)


def folder_with_key(features_dir: Path, key: str) -> Path | None:
    """Return the cache folder with this key, whatever its name begins with.

    Raises:
        DamagedError, FormatError: a folder of that name cannot be read.
    """
    for path in sorted(features_dir.glob(f"*--{key[:10]}")):
        if (path / records.RECIPE).is_file() and records.read_recipe(path)["key"] == key:
            return path
    return None


def _found(path: Path, seal: dict[str, Any], begin: float, hit: bool = True) -> Extraction:
    record = records.read_recipe(path)
    order = [node["name"] for node in record["recipe"]["nodes"]]
    return Extraction(
        path=path,
        hit=hit,
        fingerprint=record["key"],
        rows={split: seal["rows"][split] for split in SPLITS if split in seal["rows"]},
        nodes={name: record["columns"][name] for name in order},
        bytes=seal["bytes"],
        bad_images=seal["bad"],
        seconds=time.perf_counter() - begin,
    )


def _refuse_bad(found: Extraction, settings: Settings) -> None:
    """A cache made with skipped images is no answer to somebody who wants none skipped."""
    if found.bad_images and settings.on_bad_image == "error":
        raise DatasetError(
            f"{found.bad_images} images of {found.path.name} could not be read when it was made.",
            f"See them with: featcache info {found.path.name}; accept them with --on-bad-image skip.",
        )

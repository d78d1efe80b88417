"""Extract: the whole way from a request to a sealed cache, or straight to the one there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from featcache.store import keeping, records, sealed
from featcache.store.recent import mark_used

if TYPE_CHECKING:
    from featcache.extraction.resolve import Job
    from featcache.images.dataset import Dataset, Known
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
    images: int = 0  # embedded by this call, views included
    copied: int = 0  # copied by this call from other caches, or from an equal image
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
            "copied": self.copied,
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
        from featcache.extraction.known import known_files

        known_hashes = known_files(settings.features_dir, request)
        job = open_job(request, source, progress, contained(settings), known_hashes)
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


def open_job(
    request: Request,
    source: Source,
    progress: Progress,
    contained: bool = False,
    known: Known | None = None,
) -> Job:
    """Open the data set and the backbone of a request.

    With `contained` images are decoded in processes that may die; `known` says which need not be read again.

    Raises:
        DatasetError, BackboneError, WeightsError: they cannot be had.
    """
    from featcache.extraction.resolve import resolve

    dataset = open_dataset(request, source, progress)
    dataset.known = known
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
    seal = None if existing is None else sealed.check_sealed(existing, job.key)
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
    from featcache.extraction.contained import apart
    from featcache.extraction.copying import expected_of, siblings_of
    from featcache.extraction.engines import Work, engine_of
    from featcache.extraction.speeds import forget_begun

    engine = engine_of(settings)
    extractor = job.extractor(*engine.extractor)
    if cache is None:
        cache = _create(job, settings, dict(extractor.columns))
        forget_begun(settings.features_dir, cache.name)
    job.contained = apart(settings, cache.name)
    todo = cache.todo()
    rows = sum(len(part) for part in todo)
    if rows < len(cache.plan):
        notify(f"Going on with {cache.name}: {len(cache.plan) - rows} of {len(cache.plan)} rows are there.")
    sources = siblings_of(cache)
    ahead = expected_of(cache, todo, sources)
    for note in ahead.notes():
        notify(note)
    done = engine.fill(Work(cache, job, extractor, settings, progress, notify, sources, ahead.left))
    found = _found(cache.path, cache.seal(), begin, hit=False)
    found.images, found.extraction_seconds, found.runtime = done.images, done.seconds, done.runtime
    # Of shards that were damaged nothing was copied.
    likely = min(ahead.copied, ahead.left + ahead.copied - done.images)
    found.copied = likely if done.copied is None else done.copied
    facts = {"device": done.device, "runtime": done.runtime, "batch_size": done.batch_size}
    times = {"images": done.images, "seconds": done.seconds, "total_seconds": found.seconds}
    memory.record_extraction(settings.features_dir, cache.name, facts | times)
    return found


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

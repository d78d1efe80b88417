"""Engines: who computes which shards of a cache. Whoever does, the store's commits decide.

A cache begun by one engine is finished by another. Each takes the runtime that the cache was begun with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from featcache.extraction.request import Settings
from featcache.progress import Progress
from featcache.store.cache import Cache

if TYPE_CHECKING:
    from featcache.backbones.runtime import Extractor
    from featcache.extraction.copying import Share
    from featcache.extraction.resolve import Job
    from featcache.extraction.siblings import Sibling


@dataclass(frozen=True)
class Work:
    """A cache that is to be filled.

    Attributes:
        cache: it is there, perhaps in part.
        job: what is extracted.
        extractor: the backbone on the engine's device.
        settings: how.
        progress: told the images done, by split.
        notify: told sentences worth knowing.
        sources: finished caches that rows are copied from.
        left: views that have to be computed, as far as is known.
    """

    cache: Cache
    job: Job
    extractor: Extractor
    settings: Settings
    progress: Progress
    notify: Callable[[str], None]
    sources: Sequence[Sibling]
    left: int


@dataclass(frozen=True)
class Done:
    """What an engine did: images embedded, views included, in how many seconds; how and where.

    `copied` is how many views were copied, None where those who copied did not count.
    """

    images: int
    seconds: float
    runtime: str
    batch_size: int
    device: str
    copied: int | None = None


class Engine(Protocol):
    """Who computes the shards of a cache."""

    @property
    def extractor(self) -> tuple[str, str | None]:
        """The device, and the precision if not the recipe's, of the extractor that is made here."""
        ...

    def fill(self, work: Work) -> Done:
        """Compute what a cache lacks.

        Raises:
            FeatcacheError: what stopped it; nothing that was committed is lost.
        """
        ...


def engine_of(settings: Settings) -> Engine:
    """Return the engine that settings ask for.

    Raises:
        OptionError: a device is unknown or not there.
    """
    from featcache.extraction.several import devices_of

    if settings.engine == "ray":
        from featcache.extraction.ray_engine import Ray

        return Ray()
    devices = devices_of(settings.device)
    return Local(devices[0]) if len(devices) == 1 else Several(devices)


@dataclass(frozen=True)
class Local:
    """This process, on one device."""

    device: str

    @property
    def extractor(self) -> tuple[str, str | None]:
        """The one that computes."""
        return self.device, None

    def fill(self, work: Work) -> Done:
        """Compute what a cache lacks."""
        from featcache.extraction.batch_size import for_cache
        from featcache.extraction.contained import in_hand
        from featcache.extraction.copying import share_of
        from featcache.extraction.runtime import offer_bf16, take_runtime

        cache, job, extractor, settings = work.cache, work.job, work.extractor, work.settings
        left, share = work.left, share_of(work.cache, work.sources)
        with in_hand(settings, cache.name):
            take_runtime(job, extractor, settings, left, cache.name, work.notify)
            offer_bf16(job, extractor, settings, left, work.notify)
            size = for_cache(settings.batch_size, extractor, cache)
            start = time.perf_counter()
            settings = replace(settings, batch_size=size)
            images = compute(cache, job, extractor, settings, work.progress, share=share)
        seconds = time.perf_counter() - start
        return Done(images, seconds, extractor.runtime, size, self.device, share.copied)


@dataclass(frozen=True)
class Several:
    """A process for each of several devices of this machine."""

    devices: list[str]

    @property
    def extractor(self) -> tuple[str, str | None]:
        """One on the first device: it only tells how wide rows are."""
        return self.devices[0], None

    def fill(self, work: Work) -> Done:
        """Compute what a cache lacks."""
        from featcache.extraction import several
        from featcache.extraction.batch_size import for_cache
        from featcache.extraction.contained import in_hand

        with in_hand(work.settings, work.cache.name):
            size = for_cache(work.settings.batch_size, work.extractor, work.cache)
            settings = replace(work.settings, batch_size=size)
            start = time.perf_counter()
            images = several.run(work.cache, work.job, settings, work.progress)
        seconds, runtime = time.perf_counter() - start, several.runtime_of(settings)
        return Done(images, seconds, runtime, size, ",".join(self.devices))


def compute(
    cache: Cache,
    job: Job,
    extractor: Extractor,
    settings: Settings,
    progress: Progress,
    rest: bool = True,
    share: Share | None = None,
) -> int:
    """Compute what a cache lacks on one device; return the number of images embedded, views included.

    With `rest`, what other processes have in hand too, in the end. Rows that caches beside it have are
    copied, as `share` says where it is given.

    Raises:
        DatasetError, CacheError: as `pipeline.run`.
    """
    from featcache.extraction import pipeline
    from featcache.extraction.batch_size import for_cache
    from featcache.extraction.copying import share_of

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
        share=share or share_of(cache),
        contained=job.contained,
    )

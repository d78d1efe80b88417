"""The engine of Ray: actors all over a cluster compute, this process hands out the shards' numbers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from featcache import atomic
from featcache.extraction.actor import MARK, Extracting
from featcache.extraction.cluster import Actors, actors_of, connected
from featcache.extraction.crew import Crew
from featcache.extraction.engines import Done, Work
from featcache.extraction.joining import task_of
from featcache.extraction.pipeline import WRITERS
from featcache.extraction.request import versions
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan
from featcache.store.recent import FOLDER

RESTARTS = -1  # Ray's: without end; who is lost before it has anything committed is given up by the crew


@dataclass(frozen=True)
class Ray:
    """Actors of a Ray cluster."""

    @property
    def extractor(self) -> tuple[str, str | None]:
        """One on the CPU, in a precision that every CPU has: it only tells how wide rows are."""
        return "cpu", "fp32"

    def fill(self, work: Work) -> Done:
        """Compute what a cache lacks."""
        settings = work.settings
        with connected(settings.ray_address) as ray, _mark(work.cache) as mark:
            actors = actors_of(settings, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            work.notify(f"Ray: {actors}.")
            start, maker = time.perf_counter(), _Maker(ray, work, actors, mark)
            crew, finished = Crew(ray, maker.make, maker.window), False
            try:
                chosen = crew.first(work.notify)
                maker.take(chosen)
                for _ in range(1, min(actors.count, len(work.cache.todo()))):
                    crew.add()
                images = _follow(crew, work)
                finished = True
            finally:
                crew.end(finished)
        seconds = time.perf_counter() - start
        return Done(images, seconds, chosen["runtime"], chosen["batch_size"], chosen["device"])


class _Maker:
    """Makes actors; after the first has chosen runtime and batch size, with these."""

    def __init__(self, ray: Any, work: Work, actors: Actors, mark: tuple[str, str]) -> None:
        self.window = 2 + (WRITERS if actors.gpus else 1)  # one decoded, one computed, the others written
        threads = {"threads": actors.cpus, "versions": versions(), MARK: mark}
        self._work, self._task = work, threads
        self._settings = replace(
            work.settings,
            engine="local",
            ray_address=None,
            ray_actors=None,
            device="cuda:0" if actors.gpus else "cpu",
            workers=actors.cpus,
            features_dir=work.settings.features_dir.absolute(),
            data_dir=work.settings.data_dir.absolute(),
        )
        self._remote = ray.remote(Extracting).options(
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
            max_restarts=RESTARTS,
            max_concurrency=self.window + 2,
        )

    def take(self, chosen: dict[str, Any]) -> None:
        """Have all that follow use what the first chose."""
        self._settings = replace(self._settings, runtime=chosen["runtime"], batch_size=chosen["batch_size"])

    def make(self) -> Any:
        """Return the handle of a new actor."""
        cache = Cache(self._work.cache.path.absolute())
        return self._remote.remote(task_of(cache, self._work.job, self._settings) | self._task)


@contextmanager
def _mark(cache: Cache) -> Iterator[tuple[str, str]]:
    """Put a file beside the cache that every node must see; yield its path and what stands in it."""
    name = os.urandom(16).hex()
    path = cache.path.absolute().parent / FOLDER / "seen" / name
    atomic.make_folder(path.parent)
    atomic.write(path, name.encode())
    try:
        yield str(path), name
    finally:
        atomic.remove(path)


def _follow(crew: Crew, work: Work) -> int:
    """Have all that a cache lacks computed, tell the progress, and return the images embedded."""
    parts, todo = work.cache.shards(), {part.name for part in work.cache.todo()}
    total, images = work.cache.plan.counts(), 0
    done = Counter[str]()
    for part in parts:
        done[part.split] += 0 if part.name in todo else len(part)

    def answered(number: int, embedded: int) -> None:
        """Count a shard."""
        nonlocal images
        part: ShardPlan = parts[number]
        images += embedded
        done[part.split] += len(part)
        work.progress(part.split, done[part.split], total[part.split])

    for split in {name.partition("-")[0] for name in todo}:
        work.progress(split, done[split], total[split])
    numbers = (number for number, part in enumerate(parts) if part.name in todo)
    crew.work(numbers, len(todo), answered)
    return images

"""Reader → mapper → writer: images are decoded in threads, embedded in batches, committed shard by shard.

Memory is bounded by a few batches and two shards, whatever the number of images. Batches never cross a
shard's border, so a shard's bytes do not depend on where an interrupted run went on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import fit
from featcache.backbones.runtime import Extractor
from featcache.backbones.runtimes.streams import in_streams
from featcache.errors import BadImageError, CacheError, DatasetError
from featcache.images.dataset import Dataset, content_hash
from featcache.images.decode import decode
from featcache.progress import Progress, silent
from featcache.recipe import Preprocess
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.claims import shared
from featcache.store.plan import ShardPlan

PREFETCH = 3  # batches being decoded ahead of the backbone
CHUNK = 4  # images a task: fewer tasks than images, yet enough of them to keep every thread busy

Bad = tuple[int, str]
Embedded = tuple["Batch", dict[str, NDArray[np.floating]], list[Bad]]


@dataclass
class Batch:
    """Rows of one shard on their way: their pixels, and those that could not be read."""

    part: ShardPlan
    first: int
    stop: int
    pixels: NDArray[np.uint8]  # (B, crop, crop, 3)
    decoding: list[Future[list[Bad]]] = field(default_factory=list)

    def wait(self) -> list[Bad]:
        """Wait until all images are decoded; return those that could not be."""
        return [bad for task in self.decoding for bad in task.result()]


class Reader:
    """Decodes the images of planned rows in threads, a few batches ahead of their use.

    Args:
        dataset: its row numbers are those of the plan.
        preprocess: how an image is fitted to the backbone's input.
        batch_size: images a batch at most.
        workers: decoding threads, one for each core where None.
        max_pixels: larger images are refused.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, batch_size: int, workers: int | None, max_pixels: int
    ) -> None:
        self.dataset, self.preprocess = dataset, preprocess
        self.batch_size, self.max_pixels = batch_size, max_pixels
        self.pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="decode")

    def batches(self, parts: Iterator[ShardPlan]) -> Iterator[Batch]:
        """Yield the batches of the shards in order, each with its decoding under way."""
        ahead: deque[Batch] = deque()
        for part in parts:
            for first in range(part.first, part.stop, self.batch_size):
                ahead.append(self._start(part, first, min(first + self.batch_size, part.stop)))
                if len(ahead) > PREFETCH:
                    yield ahead.popleft()
        yield from ahead

    def close(self) -> None:
        """Stop the threads; what has not begun is dropped."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, part: ShardPlan, first: int, stop: int) -> Batch:
        crop = self.preprocess.crop
        batch = Batch(part, first, stop, np.empty((stop - first, crop, crop, 3), dtype=np.uint8))
        for begin in range(first, stop, CHUNK):
            batch.decoding.append(self.pool.submit(self._decode, batch, begin, min(begin + CHUNK, stop)))
        return batch

    def _decode(self, batch: Batch, begin: int, end: int) -> list[Bad]:
        bad: list[Bad] = []
        for row in range(begin, end):
            try:
                batch.pixels[row - batch.first] = fit(self._image(row), self.preprocess)
            except BadImageError as error:
                batch.pixels[row - batch.first] = 0
                bad.append((row, error.message))
        return bad

    def _image(self, row: int) -> NDArray[np.uint8]:
        """Decode an image, if its bytes are still those the plan was made from."""
        planned = self.dataset.content_hashes[row].tobytes()
        try:
            data = self.dataset.raw(row)
        except BadImageError:
            if not any(planned):
                raise  # it could not be read when the plan was made either
            data = b""
        if content_hash(data) != planned:
            raise DatasetError(
                f"The image {self.dataset.ids[row]} changed while its features were being extracted.",
                "Run the same command again when the images are at rest.",
            )
        return decode(data, self.max_pixels)


class Writer:
    """Gathers features into shards and commits each in a thread of its own, one at a time."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self.pending: Future[bool] | None = None
        self.features: dict[str, NDArray[np.floating]] = {}
        self.bad: list[Bad] = []

    def add(self, batch: Batch, features: Mapping[str, NDArray[np.floating]], bad: Sequence[Bad]) -> None:
        """Take the features of a batch; commit the shard when it is whole."""
        part = batch.part
        if batch.first == part.first:
            dtype = self.cache.recipe.store_dtype
            self.features = {
                node: np.empty((len(part), width), dtype) for node, width in self.cache.columns.items()
            }
            self.bad = []
        for node, rows in features.items():
            self.features[node][batch.first - part.first : batch.stop - part.first] = rows
        self.bad += bad
        if batch.stop == part.stop:
            self.finish()
            self.pending = self.pool.submit(self.cache.commit, part, self.features, tuple(self.bad))

    def finish(self) -> None:
        """Wait for the shard being written.

        Raises:
            SpaceError, CacheError: it could not be written.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        """Stop the thread; a shard being written is finished first."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def run(
    cache: Cache,
    dataset: Dataset,
    extractor: Extractor,
    *,
    batch_size: int,
    workers: int | None = None,
    max_pixels: int,
    skip_bad: bool = False,
    parts: Sequence[ShardPlan] | None = None,
    progress: Progress = silent,
) -> int:
    """Extract all shards that are not committed yet; return the number of images embedded.

    Args:
        cache: the cache to fill; other processes may fill it at the same time.
        dataset: in the order of the cache's plan.
        extractor: the backbone, ready on its device.
        batch_size: images a forward pass.
        workers: decoding threads.
        max_pixels: larger images count as unreadable.
        skip_bad: mark the rows of unreadable images instead of stopping.
        parts: only these shards.
        progress: told the images done, by split.

    Raises:
        DatasetError: an image cannot be read, unless `skip_bad`.
        CacheError: a feature is not finite, or a shard cannot be written.
    """
    left = cache.todo() if parts is None else list(parts)
    reader = Reader(dataset, cache.recipe.preprocess, batch_size, workers, max_pixels)
    writer = Writer(cache)
    count = _Count(cache, left, progress)
    try:
        batches = reader.batches(shared(cache.path, left, partial(_committed, cache)))

        def embed(batch: Batch) -> Embedded:
            """Wait for the images of a batch and embed them."""
            bad = batch.wait()
            if bad and not skip_bad:
                raise unreadable(dataset, bad)
            return batch, _features(cache, dataset, extractor, batch, bad), bad

        work = extractor.work
        with closing(in_streams(embed, batches, work.streams, work.threads_each)) as embedded:
            for batch, features, bad in embedded:
                writer.add(batch, features, bad)
                count.add(batch)
        writer.finish()
    finally:
        reader.close()
        writer.close()
    return count.images


def _committed(cache: Cache, part: ShardPlan) -> bool:
    return (cache.path / records.COMMITS / f"{part.name}.json").exists()


class _Count:
    """Counts images by split and tells the progress."""

    def __init__(self, cache: Cache, left: Sequence[ShardPlan], progress: Progress) -> None:
        self.images, self.progress = 0, progress
        self.total = cache.plan.counts()
        todo = {split: sum(len(part) for part in left if part.name.startswith(split)) for split in self.total}
        self.done = {split: count - todo[split] for split, count in self.total.items()}

    def add(self, batch: Batch) -> None:
        """Count the images of a finished batch."""
        split, size = batch.part.name.partition("-")[0], batch.stop - batch.first
        self.images += size
        self.done[split] += size
        self.progress(split, self.done[split], self.total[split])


def _features(
    cache: Cache, dataset: Dataset, extractor: Extractor, batch: Batch, bad: Sequence[Bad]
) -> dict[str, NDArray[np.floating]]:
    """Return node → (B, D) in the stored dtype, finite before and after the cast; zero for bad rows."""
    out: dict[str, NDArray[np.floating]] = {}
    lost = [row - batch.first for row, _ in bad]
    for node, rows in extractor(batch.pixels).items():
        rows[lost] = 0
        with np.errstate(over="ignore"):
            stored = rows.astype(cache.recipe.store_dtype)
        # One sum a batch tells whether anything is not finite; the search for where comes only then.
        if not np.isfinite(stored.sum(dtype=np.float64)):
            raise _not_finite(cache, dataset, node, batch.first, rows, stored)
        out[node] = stored
    return out


def _not_finite(
    cache: Cache,
    dataset: Dataset,
    node: str,
    first: int,
    rows: NDArray[np.floating],
    stored: NDArray[np.floating],
) -> CacheError:
    row, column = (int(i) for i in np.argwhere(~np.isfinite(stored))[0])
    value, name = float(rows[row, column]), dataset.ids[first + row]
    where = f"column {column} of node {node!r} for {name}"
    if np.isfinite(value):
        return CacheError(
            f"A feature does not fit into {cache.recipe.store_dtype}: {value:g} in {where}.",
            "Extract with --store-dtype float32.",
        )
    return CacheError(
        f"The backbone gave {value} in {where}; such a feature is never stored.",
        "Check the weights, or use --precision fp32.",
    )


def unreadable(dataset: Dataset, bad: Sequence[Bad]) -> DatasetError:
    """Return the error that names the first image that cannot be read."""
    row, reason = bad[0]
    return DatasetError(
        f"Cannot read the image {dataset.ids[row]}: {reason}.",
        "Mend or remove it, or extract with --on-bad-image skip to leave such images out.",
    )


def default_batch_size(extractor: Extractor) -> int:
    """Return how many images go through the backbone at once.

    On a CPU small batches keep the activations in the caches; a GPU needs many images to be busy.
    """
    return 128 if extractor.device.startswith("cuda") else extractor.work.chunk


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

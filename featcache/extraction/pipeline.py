"""Reader → lane → writer: images are decoded ahead, embedded in batches, committed shard by shard.

Memory is bounded by a few batches and a few shards, whatever the number of images. Batches never cross a
shard's border, so a shard's bytes do not depend on where an interrupted run went on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from featcache.backbones.devices import pin
from featcache.backbones.lane import Lane
from featcache.backbones.recorded import Flight
from featcache.backbones.resize import Resizer, resizer
from featcache.backbones.resize_plan import is_pillows
from featcache.backbones.runtime import Extractor
from featcache.errors import CacheError, DatasetError
from featcache.extraction.copying import Share, share_of
from featcache.extraction.pixels import Shape
from featcache.extraction.reader import Bad, Batch, Reader, Reading
from featcache.extraction.views import pixels_of
from featcache.extraction.writer import Features, Writer
from featcache.images.dataset import Dataset
from featcache.progress import Progress, silent
from featcache.recipe import Preprocess, Recipe
from featcache.store import keeping, records
from featcache.store.cache import Cache
from featcache.store.claims import shared
from featcache.store.plan import ShardPlan

__all__ = ["Reader", "Writer", "default_batch_size", "run", "unreadable"]

WRITERS = 3  # shards a GPU's rows are written by at once: a disk takes several as fast as one


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
    rest: bool = True,
    share: Share | None = None,
    contained: bool = False,
    stream: Iterator[ShardPlan | None] | None = None,
) -> int:
    """Extract all shards that are not committed yet; return the number of images embedded, views included.

    Args:
        cache: the cache to fill; other processes may fill it at the same time.
        dataset: in the order of the cache's plan.
        extractor: the backbone, ready on its device.
        batch_size: images a forward pass.
        workers: threads or processes that decode.
        max_pixels: larger images count as unreadable.
        skip_bad: mark the rows of unreadable images instead of stopping.
        parts: only these shards.
        progress: told the images done, by split.
        rest: whether to compute in the end what other processes have in hand, or had when they died.
        share: what is computed and what is copied; None: only what the cache itself holds twice is copied.
        contained: decode images in files in processes of their own, so that a decoder may die.
        stream: the shards, one by one as somebody hands them out, of those in `parts` and without claims;
            None says that for now there is no more, and that what is under way should be committed.

    Raises:
        DatasetError: an image cannot be read, unless `skip_bad`.
        CacheError: a feature is not finite, or a shard cannot be written.
    """
    left = cache.todo() if parts is None else list(parts)
    lane = lane_of(cache.recipe, extractor, batch_size)
    share, step = share or share_of(cache, ()), cache.recipe.preprocess
    how = replace(reading(lane, batch_size, workers, max_pixels), contained=contained)
    reader = Reader(dataset, step, how, cache.recipe.views, share.wanted)
    writer = Writer(cache, left, lane.room, WRITERS if lane.on_gpu else 1, lane.depth, share)
    work = _Work(cache, dataset, extractor, _Count(cache, left, progress), share)
    lane.prepare(reader.shape)  # while the processes that decode begin
    under_way: deque[tuple[Batch, int, Features, Flight]] = deque()
    handed = stream or shared(cache.path, left, partial(_committed, cache), rest)
    try:
        for batch in reader.stream(work.computed(writer, handed)):
            if batch is None:
                while under_way:
                    work.land(reader, writer, *under_way.popleft())
                writer.finish()
                continue
            if batch.bad and not skip_bad:
                raise unreadable(dataset, batch.bad)
            for view, pixels in batch.each_view():
                rows = writer.rows(batch, view)
                under_way.append((batch, view, rows, lane.submit(pixels, rows)))
                if len(under_way) > lane.depth:
                    work.land(reader, writer, *under_way.popleft())
        while under_way:
            work.land(reader, writer, *under_way.popleft())
        writer.finish()
    finally:
        for *_, flight in under_way:
            flight.settle()  # nothing is copied any more into memory that is about to go
        lane.close()
        reader.close()
        writer.close()
    return work.count.images


def lane_of(recipe: Recipe, extractor: Extractor, batch_size: int) -> Lane:
    """Return the lane that computes a recipe's rows; on a GPU it resizes small images itself."""
    step, device = recipe.preprocess, extractor.device
    resize = partial(_resizer, step, device) if device != "cpu" and is_pillows(step.interpolation) else None
    return Lane(extractor, recipe.row_dtype, batch_size, resize)


def _resizer(step: Preprocess, device: str, source: Shape) -> Resizer:
    return resizer(source, step, device)


def reading(lane: Lane, batch_size: int, workers: int | None, max_pixels: int) -> Reading:
    """Return how to feed a lane: a GPU wants pinned memory, bytes as small as they come, and processes."""
    device, gpu = lane.extractor.device, lane.on_gpu
    return Reading(
        batch_size,
        workers,
        max_pixels,
        own_size=lane.resizes,
        processes=gpu,
        after=lane.depth + 1,
        pin=partial(pin, device=device) if gpu else None,
    )


@dataclass
class _Work:
    """What happens to the rows of a batch when they are there."""

    cache: Cache
    dataset: Dataset
    extractor: Extractor
    count: _Count
    share: Share

    def computed(
        self, writer: Writer, parts: Iterator[ShardPlan | None] | Iterator[ShardPlan]
    ) -> Iterator[ShardPlan | None]:
        """Yield the shards of which something is to be computed, and let the others be copied."""
        for part in parts:
            if part is None:
                yield None
                continue
            wanted = self.share.wanted(part)
            if copied := len(part) - sum(len(one.rows) for one in wanted):
                self.count.rows(part.split, copied)
            if wanted:
                yield part
            else:
                writer.copy(part)

    def land(
        self, reader: Reader, writer: Writer, batch: Batch, view: int, rows: Features, flight: Flight
    ) -> None:
        """Wait for a view of a batch's rows and check them; the last goes to the writer. Bad images are 0."""
        finite = flight.wait()
        lost = np.searchsorted(batch.rows, [row for row, _ in batch.bad])
        for values in rows.values():
            values[lost] = 0
        if not finite:
            self._check(batch, view, rows)
        self.count.images += len(batch.rows)
        if view != batch.room.views[-1]:
            return
        reader.give(batch)
        writer.add(batch, batch.bad)
        if batch.last:
            self.count.rows(batch.part.split, len(batch.rows))

    def _check(self, batch: Batch, view: int, rows: Features) -> None:
        """Find what is not finite; only the row of an image that could not be read may be."""
        for node, values in rows.items():
            where = np.argwhere(~np.isfinite(values))
            if len(where):
                row, column = (int(i) for i in where[0])
                raise self._not_finite(node, int(batch.rows[row]), view, column)

    def _not_finite(self, node: str, row: int, view: int, column: int) -> CacheError:
        which = f", view {view}" if view else ""
        where = f"column {column} of node {node!r} for {self.dataset.ids[row]}{which}"
        image = pixels_of(self.dataset, row, view, self.cache.recipe)
        value = float(self.extractor(image[None])[node][0, column])
        if np.isfinite(value):
            return CacheError(
                f"A feature does not fit into {self.cache.row_dtype}: {value:g} in {where}.",
                "Extract with --store-dtype float32.",
            )
        return CacheError(
            f"The backbone gave {value} in {where}; such a feature is never stored.",
            "Check the weights, or use --precision fp32.",
        )


class _Count:
    """Counts images by split and tells the progress."""

    def __init__(self, cache: Cache, left: Sequence[ShardPlan], progress: Progress) -> None:
        self.images, self.progress = 0, progress
        self.total = cache.plan.counts()
        todo = {split: sum(len(part) for part in left if part.name.startswith(split)) for split in self.total}
        self.done = {split: count - todo[split] for split, count in self.total.items()}
        for split, count in todo.items():
            if count:
                progress(split, self.done[split], self.total[split])

    def rows(self, split: str, count: int) -> None:
        """Count rows that are done."""
        self.done[split] += count
        self.progress(split, self.done[split], self.total[split])


def _committed(cache: Cache, part: ShardPlan) -> bool:
    return keeping.there(cache.path / records.COMMITS / f"{part.name}.json")


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

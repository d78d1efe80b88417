"""The reader: images of planned rows, decoded a few batches ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import fit
from featcache.errors import BadImageError
from featcache.extraction.decoding import Decoded, Threads, raise_if_changed
from featcache.extraction.pixels import Pin, Ring, Room, Shape, ring_bytes
from featcache.extraction.processes import Processes, size_of
from featcache.extraction.views import GROUP, Fitting, Wanted, groups, keeps_sizes, one_thread
from featcache.images.cores import cores
from featcache.images.dataset import Dataset
from featcache.images.memory import Memory, can_share
from featcache.recipe import Preprocess, Views
from featcache.store.plan import ShardPlan

PREFETCH = 3  # batches being decoded ahead of the backbone, at least
MANY = 4096  # images for which starting processes pays
FEW = 8  # images that are worth a process, where they are wanted however few there are

Bad = tuple[int, str]


@dataclass
class Batch:
    """Rows of one shard on their way: the pixels of some of their views, and those that could not be read.

    They are those from `first` to `stop` - 1 of the rows `wanted`. `last` says that their other views came
    before.
    """

    part: ShardPlan
    wanted: Wanted
    first: int
    stop: int
    room: Room
    ring: Ring
    tasks: list[tuple[list[int], Future[Decoded]]] = field(default_factory=list)  # (rows, …)
    bad: list[Bad] = field(default_factory=list)
    last: bool = True

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the plan (B,), in order."""
        return self.wanted.rows[self.first : self.stop]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(V * B, crop, crop, 3), one view behind the other, or (V * B, H, W, 3) of the images' own size."""
        return self.room.pixels

    def each_view(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the numbers of the views, and the pixels (B, …) of each."""
        return zip(self.room.views, self.room.by_view, strict=True)


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        batch_size: images a batch at most.
        workers: threads or processes that decode, one for each core where None.
        max_pixels: larger images count as unreadable.
        own_size: whether small images, all of one size, may come as they are, to be resized on the device.
        processes: whether images in files are decoded by processes where there are many; else by threads.
        contained: whether they are decoded by processes however few there are, so that a decoder may die.
        after: batches that are kept after they were yielded.
        pin: makes the pixels' memory quick to copy to the device.
    """

    batch_size: int
    workers: int | None
    max_pixels: int
    own_size: bool = False
    processes: bool = False
    after: int = 1
    pin: Pin | None = None
    contained: bool = False


class Reader:
    """Decodes the images of planned rows, a few batches ahead of their use.

    Args:
        dataset: its row numbers are those of the plan.
        preprocess: how an image is fitted to the backbone's input.
        how: see there.
        views: how views are drawn, None where there are none.
        wanted: which views of which of a shard's rows are wanted; None: the images themselves, all of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        how: Reading,
        views: Views | None = None,
        wanted: Callable[[ShardPlan], Sequence[Wanted]] | None = None,
    ) -> None:
        self.dataset, self.how = dataset, how
        self._wanted = wanted or (lambda part: [Wanted(part.rows, range(1))])
        self.fitting = Fitting(preprocess, how.max_pixels, views)
        self._most = 1 if views is None else min(GROUP, views.count)
        workers = how.workers or cores()
        many = how.processes and workers > 1 and len(dataset) >= MANY
        self._processes = (many or how.contained) and can_share() and _in_files(dataset)
        task = Processes.images if self._processes else Threads.images
        self._ahead = max(PREFETCH, -(-2 * workers * task // how.batch_size))
        own = how.own_size and keeps_sizes(views)
        self._own = self._common_size() if own else None
        self._memory, self._rings = self._room()
        self._decoder = self._made(workers)
        draws = views is not None and not self._processes
        begin = one_thread if draws else None  # the threads together have the cores
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode", initializer=begin)

    def _made(self, workers: int) -> Threads | Processes:
        if not self._processes:
            return Threads(self.dataset, self.fitting)
        count = max(1, min(workers, len(self.dataset) // FEW))
        return Processes(self.dataset, self.fitting, self._memory, count, self.how.contained)

    @property
    def shape(self) -> Shape:
        """The size, height and width, in which images come first."""
        return self._own or self.fitting.shape()

    def batches(self, parts: Iterator[ShardPlan]) -> Iterator[Batch]:
        """Yield the batches of the shards in order, decoded; give each back when its pixels were read.

        Rows of which many views are wanted come in several batches.

        Raises:
            DatasetError: an image changed since the plan was made.
        """
        return (batch for batch in self.stream(parts) if batch is not None)

    def stream(self, parts: Iterator[ShardPlan | None]) -> Iterator[Batch | None]:
        """Yield batches as `batches` does; where the next shard is None, for now there is none.

        Then all that was read ahead comes out, and None behind it.

        Raises:
            DatasetError: an image changed since the plan was made.
        """
        ahead: deque[Batch] = deque()
        for part in parts:
            if part is None:
                while ahead:
                    yield self._ready(ahead.popleft())
                yield None
                continue
            for batch in self._begun(part):
                ahead.append(batch)
                if len(ahead) > self._ahead:
                    yield self._ready(ahead.popleft())
        while ahead:
            yield self._ready(ahead.popleft())

    def give(self, batch: Batch) -> None:
        """Take back a batch whose pixels nobody reads any more."""
        batch.ring.give(batch.room)

    def close(self) -> None:
        """Stop the threads and processes; what has not begun is dropped."""
        self.dataset.stop()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self._decoder.close()
        for ring in self._rings.values():
            ring.close()
        self._memory.close()

    def _room(self) -> tuple[Memory, dict[bool, Ring]]:
        """Return rings for fitted images (True) and for images of their own size (False)."""
        size, count = self.how.batch_size * self._most, self._ahead + 1 + self.how.after
        shapes = {True: self.fitting.shape()} | ({} if self._own is None else {False: self._own})
        lengths = {fitted: ring_bytes(shape, size, count) for fitted, shape in shapes.items()}
        memory = Memory(sum(lengths.values()), self._processes)
        begins = {True: 0, False: lengths[True]}
        rings = {
            fitted: Ring(memory, begins[fitted], shape, size, count, self.how.pin)
            for fitted, shape in shapes.items()
        }
        return memory, rings

    def _begun(self, part: ShardPlan) -> Iterator[Batch]:
        """Yield the batches of a shard as their decoding begins; none holds rows of different views."""
        for wanted in self._wanted(part):
            for first in range(0, len(wanted.rows), self.how.batch_size):
                for views in groups(wanted.views):
                    yield self._start(part, wanted, first, views)

    def _start(self, part: ShardPlan, wanted: Wanted, first: int, views: range) -> Batch:
        """Begin to decode the images of some rows."""
        ring, stop = self._rings[self._own is None], min(first + self.how.batch_size, len(wanted.rows))
        room = replace(ring.take((stop - first) * len(views)), views=tuple(views))
        batch = Batch(part, wanted, first, stop, room, ring, last=views.stop == wanted.views.stop)
        step, fitted, rows = self._decoder.images, ring is self._rings[True], batch.rows.tolist()
        for begin in range(0, len(rows), step):
            some = rows[begin : begin + step]
            source = () if self._processes else (self.dataset.begin(some),)
            task = self.pool.submit(self._decoder.decode, some, room, begin, fitted, *source)
            batch.tasks.append((some, task))
        return batch

    def _ready(self, batch: Batch) -> Batch:
        """Wait until all images are decoded."""
        for rows, task in batch.tasks:
            decoded = task.result()
            raise_if_changed(decoded, self.dataset, rows)
            if decoded.odd:
                return self._again(batch)
            batch.bad += [(rows[place], why) for place, why in decoded.bad]
        return batch

    def _again(self, batch: Batch) -> Batch:
        """The images are not all of one size: fit them here, these and all that follow."""
        self._own = None
        for _, task in batch.tasks:
            task.result()  # nobody writes to its room any more
        views = range(batch.room.views[0], batch.room.views[-1] + 1)
        self.give(batch)
        return self._ready(self._start(batch.part, batch.wanted, batch.first, views))

    def _common_size(self) -> Shape | None:
        """Return the size of the first image, if images of that size are smaller than fitted ones."""
        if self.how.contained and self._processes:
            first = size_of(self.dataset, self.fitting)
        else:
            first = _size_here(self.dataset, self.fitting)
        if first is None:
            return None
        height, width = first
        return (height, width) if height * width < self.fitting.preprocess.crop**2 else None


def _size_here(dataset: Dataset, fitting: Fitting) -> Shape | None:
    """Return the size of the first image, None where it cannot be read."""
    try:
        image = dataset.image(0, fitting.max_pixels)
        fit(image, fitting.preprocess)
    except (BadImageError, IndexError):
        return None
    return image.shape[0], image.shape[1]


def _in_files(dataset: Dataset) -> bool:
    return len(dataset) > 0 and dataset.file(0) is not None

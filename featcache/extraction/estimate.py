"""What an extraction will cost, before it starts: rows, bytes, free disk, seconds at a measured rate."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.backbones.lane import Lane
from featcache.backbones.recorded import Flight, Rows
from featcache.backbones.runtime import Extractor
from featcache.errors import SpaceError
from featcache.extraction.pipeline import lane_of, reading
from featcache.extraction.reader import Batch, Reader
from featcache.extraction.resolve import Job
from featcache.extraction.views import GROUP, Wanted, forward_passes
from featcache.recipe import ITEMSIZES, Recipe
from featcache.store import keeping
from featcache.store.plan import Plan, ShardPlan

FILE_OVERHEAD = 64 * 1024  # bytes a shard needs beside its rows, at most
SAMPLE_BATCHES = 4


def needed_bytes(
    recipe: Recipe, plan: Plan, columns: dict[str, int], shard_rows: int, left: Mapping[str, int]
) -> int:
    """Return the bytes that rows of a plan take on disk, so many of each split, metadata included."""
    itemsize = ITEMSIZES[recipe.store_dtype]
    rows, views = sum(left.values()), forward_passes(recipe, left)
    shards = -(-rows // shard_rows) + len(plan.counts())
    scales = 8 * sum(columns.values()) if itemsize == 1 else 0  # scale and offset of int8
    whole = views * sum(columns.values()) * itemsize + rows * 17  # label, row and status
    return whole + shards * (FILE_OVERHEAD + scales)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk a folder is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int) -> None:
    """Refuse work that cannot fit.

    Raises:
        SpaceError: naming what is needed and what is free.
    """
    free = free_bytes(folder)
    if keeping.far_of(folder) is not None:
        return  # what is kept here of a store is copies, where there is room
    if needed > free:
        raise SpaceError(
            f"The features need {needed / 1e6:,.1f} MB in {folder} and {free / 1e6:,.1f} MB are free.",
            "Make room, choose another --features-dir, or a node with fewer columns (featcache layers).",
        )


def measured_rate(job: Job, extractor: Extractor, batch_size: int, workers: int | None) -> dict[str, Any]:
    """Embed a few batches of real images, with their views, and return images a second, and the columns.

    The first batch warms up and is not counted. Unreadable images count: they take time too.
    """
    lane = lane_of(job.recipe, extractor, batch_size)
    how = reading(lane, batch_size, workers, job.request.max_pixels)
    how = replace(how, contained=job.contained)
    part = ShardPlan(
        "train-00000", 0, min(len(job.dataset), batch_size * SAMPLE_BATCHES * max(1, lane.depth))
    )
    new = range(min(GROUP, job.recipe.views_in(part.split)))
    reader = Reader(
        job.dataset, job.recipe.preprocess, how, job.recipe.views, lambda part: [Wanted(part.rows, new)]
    )
    rooms: deque[Rows] = deque(
        {node: lane.room((batch_size, width)) for node, width in extractor.columns.items()}
        for _ in range(lane.depth + 1)
    )
    start = time.perf_counter()
    try:
        landed = list(_landed(lane, reader, part, rooms))
    finally:
        lane.close()
        reader.close()
    if len(landed) > 1:
        (_, start), *landed = landed
    images = sum(size for size, _ in landed)
    rate = images / max(landed[-1][1] - start, 1e-9)
    return {"images_per_second": round(rate, 1), "columns": dict(extractor.columns)}


def _landed(lane: Lane, reader: Reader, part: ShardPlan, rooms: deque[Rows]) -> Iterator[tuple[int, float]]:
    """Embed a shard's images; yield of every batch its images and when it was done."""
    under_way: deque[tuple[Batch, bool, Flight]] = deque()

    def land() -> tuple[int, float]:
        """Wait for the oldest batch."""
        batch, last, flight = under_way.popleft()
        flight.wait()
        done = batch.stop - batch.first, time.perf_counter()
        if last:
            reader.give(batch)
        return done

    for batch in reader.batches(iter([part])):
        for view, pixels in batch.each_view():
            rows = {node: room[: len(pixels)] for node, room in rooms[0].items()}
            rooms.rotate()
            under_way.append((batch, view == batch.room.views[-1], lane.submit(pixels, rows)))
            if len(under_way) > lane.depth:
                yield land()
    while under_way:
        yield land()

"""What a Ray actor does: it holds the backbone, is told numbers of shards and answers with counts.

It reads the images and writes the shards itself, into the folders that all nodes share. Everything it is told
twice, or does after it was given up, is harmless: the store's commit decides.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from pathlib import Path
from typing import Any

from featcache.errors import BadImageError, CacheError, DatasetError, FeatcacheError
from featcache.extraction.joining import Message, error_message
from featcache.extraction.request import versions

MARK = "mark"  # in a task: the file that every node must see, and what stands in it


class Extracting:
    """An actor; Ray makes it anew, from the same task, where its process or its node is lost."""

    def __init__(self, task: Message) -> None:
        self._task, self._opened, self._lock = task, False, threading.Lock()
        self._held = contextlib.ExitStack()
        self._node = platform.node()

    def begin(self) -> Message:
        """Open everything; return the runtime, the batch size and the device, or an error."""
        try:
            self._open()
        except FeatcacheError as error:
            return error_message(error)
        return dict(self._facts)

    def shard(self, number: int) -> Message:
        """Have a shard committed; return the images embedded for it, views included, or an error."""
        try:
            self._open()
            part = self._parts[number]
            if self._is_committed(part.name):
                return {"images": 0}
            self._feed.put(part).result()
            return {"images": self._share.left.get(part.name, 0)}
        except FeatcacheError as error:
            return error_message(error)

    def end(self, finished: bool) -> bool:
        """End: after what is in hand where all is finished, else at once, and not like a crash."""
        if finished and self._opened:
            self._feed.close()
            self._held.close()
        else:
            self._held.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        return True

    def _open(self) -> None:
        with self._lock:
            if not self._opened:
                self._check_node()
                self._begin()
                self._opened = True

    def _check_node(self) -> None:
        """Refuse a node that has other versions or does not see the features folder.

        Raises:
            CacheError: it does not.
        """
        theirs, ours = self._task["versions"], versions()
        other = [f"{name} {ours[name]}, not {theirs[name]}" for name in theirs if ours[name] != theirs[name]]
        if other:
            raise CacheError(
                f"Node {self._node} has {'; '.join(other)}.", "Install the same versions on all nodes."
            )
        path, text = self._task[MARK]
        try:
            found = Path(path).read_text()
        except OSError as error:
            found = error.strerror or str(error)
        if found != text:
            raise CacheError(
                f"Node {self._node} does not see the features folder {Path(path).parents[2]}: the mark put "
                "there is not.",
                "Keep features and images in folders that all nodes share, under the same paths.",
            )

    def _begin(self) -> None:
        import torch

        from featcache.extraction import pipeline
        from featcache.extraction.batch_size import for_cache
        from featcache.extraction.contained import in_hand
        from featcache.extraction.copying import passes_left, share_of
        from featcache.extraction.feed import Feed, Stream, ToldCache
        from featcache.extraction.joining import join
        from featcache.extraction.runtime import take_runtime

        torch.set_num_threads(self._task["threads"])
        cache, job, settings = join(self._task)
        self._check_images(job)
        self._cache, self._share, self._parts = cache, share_of(cache), cache.shards()
        extractor = job.extractor(settings.device)
        take_runtime(job, extractor, settings, passes_left(cache, cache.todo()), cache.name)
        size = for_cache(settings.batch_size, extractor, cache)
        self._held.enter_context(in_hand(settings, cache.name))

        def run(stream: Stream) -> int:
            """Run the pipeline over the shards that are handed in."""
            return pipeline.run(
                ToldCache(cache.path, lambda name: self._feed.committed(name)),
                job.dataset,
                extractor,
                batch_size=size,
                workers=settings.workers,
                max_pixels=job.request.max_pixels,
                skip_bad=settings.on_bad_image == "skip",
                parts=self._parts,
                share=self._share,
                contained=job.contained,
                stream=stream,
            )

        self._feed = Feed(run)
        self._facts = {"runtime": extractor.runtime, "batch_size": size, "device": extractor.device}
        self._facts |= {"node": self._node, "process": os.getpid()}

    def _check_images(self, job: Any) -> None:
        """Refuse a node that does not see the images; every one is compared again when it is decoded."""
        from featcache.images.dataset import content_hash

        data = job.dataset
        for row in {0, len(data) // 2, len(data) - 1}:
            planned = data.content_hashes[row].tobytes()
            try:
                same = content_hash(data.raw(row)) == planned
            except BadImageError:
                same = not any(planned)
            if not same:
                raise DatasetError(
                    f"Node {self._node} does not see the image {data.ids[row]} as it was planned.",
                    "Keep features and images in folders that all nodes share, under the same paths.",
                )

    def _is_committed(self, name: str) -> bool:
        from featcache.store import records

        return (self._cache.path / records.COMMITS / f"{name}.json").exists()

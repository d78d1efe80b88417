"""Decoding in processes of its own, which get tasks through a pipe and put pixels into shared memory.

Small images are decoded in microseconds, most of them spent in Python, which one thread at a time can run.
So for a GPU's appetite images in files are decoded by processes: each gets the paths and content hashes of a
handful at a time. They import neither torch nor h5py. And an image whose decoder crashes takes one of them
with it, not the run.
"""

from __future__ import annotations

import contextlib
import mmap
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import fit
from featcache.errors import BadImageError, CacheError
from featcache.extraction.decoding import Decoded, Threads, decode_into
from featcache.extraction.pixels import Room, Shape, by_view
from featcache.extraction.views import Drawn, Fitting, augmenter
from featcache.images.child import Child, EndedError, run
from featcache.images.dataset import Dataset
from featcache.images.decode import decode
from featcache.images.memory import Memory, mapped
from featcache.images.stored import read_file
from featcache.recipe import Preprocess, Views

MODULE = "featcache.extraction.processes"  # what the processes run: this
PATIENCE = 0.01  # seconds that a task waits for its turn before it looks whether processes have begun


class Processes:
    """Decodes in processes of its own; the thread that calls waits.

    Until the first has begun, which takes a third of a second, one thread decodes here: a GPU need not wait.
    Not so where they are there to die in place of this one. Images at which one ends are asked for again, one
    by one.

    Args:
        dataset: of images in files.
        fitting: what is done to every image.
        memory: shared; the batches' rooms lie in it.
        count: of processes.
        contained: whether none may be decoded here.
    """

    images = 32  # a task: what a pipe costs is little beside it

    def __init__(
        self, dataset: Dataset, fitting: Fitting, memory: Memory, count: int, contained: bool = False
    ) -> None:
        self._dataset = dataset
        begin = _beginning(memory, fitting)
        self._all = [Child(MODULE, memory.handle, begin) for _ in range(count)]
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._here, self._turn, self._begun = Threads(dataset, fitting), threading.Lock(), contained
        self._welcome = threading.Thread(target=self._begin, name="begin", daemon=True)
        self._welcome.start()

    def decode(self, rows: Sequence[int], room: Room, place: int, fitted: bool) -> Decoded:
        """Decode rows into a batch's room from a place on, and so for every view.

        Raises:
            CacheError: the processes that decode end whatever they are asked.
        """
        while not self._begun:
            if self._turn.acquire(timeout=PATIENCE):
                try:
                    return self._here.decode(rows, room, place, fitted)
                finally:
                    self._turn.release()
        child = self._idle.get()
        try:
            return self._asked(child, rows, room, place, fitted)
        except EndedError:
            return self._one_by_one(child, rows, room, place, fitted)
        finally:
            self._idle.put(child)

    def _asked(self, child: Child, rows: Sequence[int], room: Room, place: int, fitted: bool) -> Decoded:
        task = {
            "files": [self._dataset.file(row) for row in rows],
            "hashes": b"".join(self._dataset.content_hashes[row].tobytes() for row in rows).hex(),
            "at": room.at,
            "shape": room.pixels.shape,
            "place": place,
            "fitted": fitted,
            "views": room.views,
            "names": [self._dataset.ids[row] for row in rows] if any(room.views) else [],
        }
        answer = child.ask(task)
        return Decoded([(int(i), str(why)) for i, why in answer["bad"]], answer["odd"], answer["changed"])

    def _one_by_one(self, child: Child, rows: Sequence[int], room: Room, place: int, fitted: bool) -> Decoded:
        """Decode each image by itself; one that ends two fresh processes cannot be read."""
        whole = Decoded()
        for number, row in enumerate(rows):
            found = self._twice(child, row, room, place + number, fitted)
            if found.odd or found.changed is not None:
                return Decoded(odd=found.odd, changed=None if found.changed is None else number)
            if found.bad:
                room.by_view[:, place + number] = 0
                whole.bad.append((number, found.bad[0][1]))
        return whole

    def _twice(self, child: Child, row: int, room: Room, place: int, fitted: bool) -> Decoded:
        with contextlib.suppress(EndedError):  # another's doing, such as a kill by the system
            return self._asked(child, [row], room, place, fitted)
        try:
            return self._asked(child, [row], room, place, fitted)
        except EndedError as error:
            why = str(error)
        try:
            self._asked(child, [], room, place, fitted)  # nothing
        except EndedError as error:
            raise CacheError(
                f"The processes that decode images end by themselves: {error}.",
                "With --decode-in threads images are decoded in this process.",
            ) from error
        return Decoded([(0, why)])

    def close(self) -> None:
        """End the processes."""
        for child in self._all:
            child.kill()
        self._welcome.join()
        for child in self._all:
            child.close()

    def _begin(self) -> None:
        """Hand out each process when it is ready, or dead: whoever asks it will see."""
        for child in self._all:
            child.wait()
            self._idle.put(child)
            self._begun = True


def size_of(dataset: Dataset, fitting: Fitting) -> Shape | None:
    """Return the size of a data set's first image, looked at by a process; None where it cannot be read."""
    memory = Memory(mmap.PAGESIZE, shared=True)
    child = Child(MODULE, memory.handle, _beginning(memory, fitting))
    try:
        found = child.ask({"size": dataset.file(0)})
        return None if found is None else (int(found[0]), int(found[1]))
    except EndedError:
        return None
    finally:
        child.close()
        memory.close()


def _beginning(memory: Memory, fitting: Fitting) -> dict[str, Any]:
    """Return what a process is told first."""
    views = None if fitting.views is None else asdict(fitting.views)
    where = {"size": memory.size, "handle": memory.handle}
    return {
        **where,
        "max_pixels": fitting.max_pixels,
        "preprocess": asdict(fitting.preprocess),
        "views": views,
    }


def _begin(start: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Return what decodes the images asked for."""
    views = start["views"]
    views = None if views is None else Views(**{**views, "policy": tuple(views["policy"])})
    fitting = Fitting(Preprocess.from_dict(start["preprocess"]), start["max_pixels"], views)
    if views is not None:
        augmenter(views)  # what it imports is there before the first task, and before memory is limited
    memory = mapped(start["handle"], start["size"])
    return lambda task: _answer(task, memory, fitting)


def _answer(task: dict[str, Any], memory: NDArray[np.uint8], fitting: Fitting) -> Any:
    return _size(task["size"], fitting) if "size" in task else asdict(_decoded(task, memory, fitting))


def _size(file: str, fitting: Fitting) -> tuple[int, ...] | None:
    try:
        image = decode(read_file(file), fitting.max_pixels)
        fit(image, fitting.preprocess)
    except BadImageError:
        return None
    return image.shape[:2]


def _decoded(task: dict[str, Any], memory: NDArray[np.uint8], fitting: Fitting) -> Decoded:
    files, shape, hashes = task["files"], task["shape"], bytes.fromhex(task["hashes"])
    room = memory[task["at"] : task["at"] + int(np.prod(shape))].reshape(shape)
    out = by_view(room, len(task["views"]))[:, task["place"] : task["place"] + len(files)]
    each = [hashes[at : at + 16] for at in range(0, len(hashes), 16)]
    drawn = Drawn(task["views"], task["names"])
    return decode_into(out, partial(_file_at, files), each, fitting, task["fitted"], drawn)


def _file_at(files: Sequence[str], place: int) -> bytes:
    return read_file(files[place])


if __name__ == "__main__":
    run(_begin)

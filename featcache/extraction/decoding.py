"""Decoding a handful of images into a batch: here, in a thread, or in another process.

Small images are decoded in microseconds, most of them spent in Python, which one thread at a time can run.
So for a GPU's appetite images in files are decoded by processes: each gets the paths and content hashes of a
handful at a time through a pipe, and puts the pixels into shared memory. They import neither torch nor h5py.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.fitting import fit_what_can
from featcache.errors import BadImageError, CacheError, DatasetError
from featcache.extraction.contained import Child, EndedError, limited, line
from featcache.extraction.pixels import Memory, Room, Shape
from featcache.images.dataset import Dataset, content_hash
from featcache.images.decode import decode
from featcache.images.stored import read_file
from featcache.recipe import Preprocess


@dataclass(frozen=True)
class Fitting:
    """What is done to every image."""

    preprocess: Preprocess
    max_pixels: int

    def shape(self) -> Shape:
        """The size of a fitted image."""
        return self.preprocess.crop, self.preprocess.crop


@dataclass
class Decoded:
    """What became of a handful of images, by their place in it."""

    bad: list[tuple[int, str]] = field(default_factory=list)
    odd: bool = False  # one is of another size than the batch has room for, and fitting was not asked for
    changed: int | None = None  # this one's bytes are not those of the plan


class _Changed(Exception):
    pass


def decode_into(
    out: NDArray[np.uint8], source: Any, hashes: Sequence[bytes], fitting: Fitting, fitted: bool
) -> Decoded:
    """Decode images into `out` (n, H, W, 3); zeros for one that cannot be read.

    Args:
        out: where the pixels go.
        source: place → the image's bytes or pixels; raises BadImageError where it cannot be read.
        hashes: the content hash of each in the plan; zeros for one that could not be read then either.
        fitting: what is done to every image.
        fitted: whether to fit the images to the backbone's input; if not, all must be of `out`'s size.
    """
    found = Decoded()
    images: dict[int, NDArray[np.uint8]] = {}
    for place, planned in enumerate(hashes):
        try:
            image = decode(_unchanged(source, place, planned), fitting.max_pixels)
        except BadImageError as error:
            out[place] = 0
            found.bad.append((place, error.message))
            continue
        except _Changed:
            found.changed = place
            return found
        if fitted:
            images[place] = image
            continue
        if image.shape != out.shape[1:]:
            found.odd = True
            return found
        out[place] = image
    return _fitted(images, fitting, out, found) if images else found


def _fitted(
    images: dict[int, NDArray[np.uint8]], fitting: Fitting, out: NDArray[np.uint8], found: Decoded
) -> Decoded:
    """Fit the images that were decoded, together where that is faster."""
    places = list(images)
    whole = len(places) == len(out)
    room = out if whole else np.empty((len(places), *out.shape[1:]), np.uint8)
    bad = fit_what_can(list(images.values()), fitting.preprocess, room)
    if not whole:
        out[places] = room
    found.bad = sorted([*found.bad, *((places[place], why) for place, why in bad)])
    return found


def _unchanged(source: Any, place: int, planned: bytes) -> bytes | NDArray[np.uint8]:
    """Return what is stored for an image, if it is still that from which the plan was made."""
    try:
        data: bytes | NDArray[np.uint8] = source(place)
    except BadImageError:
        if not any(planned):
            raise  # it could not be read when the plan was made either
        data = b""
    if content_hash(data) != planned:
        raise _Changed
    return data


class Threads:
    """Decodes in the thread that calls."""

    images = 8  # a task: they are fitted together, and there are enough tasks to keep every thread busy

    def __init__(self, dataset: Dataset, fitting: Fitting) -> None:
        self._dataset, self._fitting = dataset, fitting

    def decode(self, first: int, stop: int, room: Room, place: int, fitted: bool) -> Decoded:
        """Decode the rows first … stop - 1 into a batch's room from a place on."""
        hashes = [self._dataset.content_hashes[row].tobytes() for row in range(first, stop)]
        out = room.pixels[place : place + stop - first]
        return decode_into(out, lambda i: self._dataset.raw(first + i), hashes, self._fitting, fitted)

    def close(self) -> None:
        """Nothing to do."""


class Processes:
    """Decodes in processes of its own; the thread that calls waits.

    Args:
        dataset: of images in files.
        fitting: what is done to every image.
        memory: shared; the batches' rooms lie in it.
        count: of processes.
    """

    images = 32  # a task: what a pipe costs is little beside it

    def __init__(self, dataset: Dataset, fitting: Fitting, memory: Memory, count: int) -> None:
        self._dataset = dataset
        start = {"size": memory.size, "handle": memory.handle, "max_pixels": fitting.max_pixels}
        begin = start | {"preprocess": asdict(fitting.preprocess)}
        self._all = [Child(memory.handle, begin) for _ in range(count)]
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        for child in self._all:
            self._idle.put(child)

    def decode(self, first: int, stop: int, room: Room, place: int, fitted: bool) -> Decoded:
        """Decode the rows first … stop - 1 into a batch's room from a place on.

        Raises:
            CacheError: the processes that decode end whatever they are asked.
        """
        child = self._idle.get()
        try:
            return self._asked(child, first, stop, room, place, fitted)
        except EndedError:
            return self._one_by_one(child, first, stop, room, place, fitted)
        finally:
            self._idle.put(child)

    def _asked(self, child: Child, first: int, stop: int, room: Room, place: int, fitted: bool) -> Decoded:
        task = {
            "files": [self._dataset.file(row) for row in range(first, stop)],
            "hashes": self._dataset.content_hashes[first:stop].tobytes().hex(),
            "at": room.at + place * room.pixels[0].nbytes,
            "shape": room.pixels.shape[1:],
            "fitted": fitted,
        }
        answer = child.ask(task)
        return Decoded([(int(i), str(why)) for i, why in answer["bad"]], answer["odd"], answer["changed"])

    def _one_by_one(
        self, child: Child, first: int, stop: int, room: Room, place: int, fitted: bool
    ) -> Decoded:
        """Decode each image by itself; one that ends two fresh processes cannot be read."""
        whole = Decoded()
        for row in range(first, stop):
            at = place + row - first
            found = self._twice(child, row, room, at, fitted)
            if found.odd or found.changed is not None:
                return Decoded(odd=found.odd, changed=None if found.changed is None else row - first)
            if found.bad:
                room.pixels[at] = 0
                whole.bad.append((row - first, found.bad[0][1]))
        return whole

    def _twice(self, child: Child, row: int, room: Room, place: int, fitted: bool) -> Decoded:
        with contextlib.suppress(EndedError):  # another's doing, such as a kill by the system
            return self._asked(child, row, row + 1, room, place, fitted)
        try:
            return self._asked(child, row, row + 1, room, place, fitted)
        except EndedError as error:
            why = str(error)
        try:
            self._asked(child, row, row, room, place, fitted)  # nothing
        except EndedError as error:
            raise CacheError(
                f"The processes that decode images end by themselves: {error}.",
                "With --decode-in threads images are decoded in this process.",
            ) from error
        return Decoded([(0, why)])

    def close(self) -> None:
        """End the processes."""
        for child in self._all:
            child.close()


def raise_if_changed(decoded: Decoded, dataset: Dataset, first: int) -> None:
    """Refuse an image whose bytes are not those from which the plan was made.

    Raises:
        DatasetError: naming it.
    """
    if decoded.changed is not None:
        raise DatasetError(
            f"The image {dataset.ids[first + decoded.changed]} changed while its features were being "
            "extracted.",
            "Run the same command again when the images are at rest.",
        )


def serve(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Decode what is asked for, line by line, until there is no more."""
    start = json.loads(tasks.readline())
    step = start["preprocess"]
    step["mean"], step["std"] = tuple(step["mean"]), tuple(step["std"])
    fitting = Fitting(Preprocess(**step), start["max_pixels"])
    memory = _mapped(start["handle"], start["size"])
    limited(start["size"], start["max_pixels"])
    answers.write(b"\n")  # ready
    answers.flush()
    while asked := tasks.readline():
        task = json.loads(asked)
        files, shape, hashes = (
            task["files"],
            (len(task["files"]), *task["shape"]),
            bytes.fromhex(task["hashes"]),
        )
        out = memory[task["at"] : task["at"] + int(np.prod(shape))].reshape(shape)
        each = [hashes[at : at + 16] for at in range(0, len(hashes), 16)]
        try:
            found = decode_into(
                out, lambda i, files=files: read_file(files[i]), each, fitting, task["fitted"]
            )
            answers.write(line(asdict(found)))
        except MemoryError:
            answers.write(line({"memory": True}))
        answers.flush()


def _mapped(handle: int, size: int) -> NDArray[np.uint8]:
    import mmap

    return np.frombuffer(mmap.mmap(handle, size), dtype=np.uint8)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its pipe
    serve(sys.stdin.buffer, sys.stdout.buffer)

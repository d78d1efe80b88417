"""Image files prepared in processes that may die in place of this one; see `featcache.images.child`."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import fit
from featcache.errors import BadImageError, CacheError
from featcache.images.child import Child, EndedError, run
from featcache.images.decode import decode
from featcache.images.memory import Memory, mapped
from featcache.images.stored import read_file
from featcache.recipe import Preprocess

MODULE = "featcache.inference.contained"  # what the processes run: this


class Contained:
    """Reads, decodes and fits image files in processes of its own; called from as many threads.

    Args:
        step: how an image is fitted.
        max_pixels: larger images count as unreadable.
        count: of processes.
    """

    def __init__(self, step: Preprocess, max_pixels: int, count: int) -> None:
        self._shape = (step.crop, step.crop, 3)
        self._bytes = int(np.prod(self._shape))
        self._memory = Memory(count * self._bytes, shared=True)
        begin: dict[str, Any] = {"size": self._memory.size, "handle": self._memory.handle}
        begin |= {"max_pixels": max_pixels, "preprocess": asdict(step)}
        self._idle: queue.SimpleQueue[tuple[Child, int]] = queue.SimpleQueue()
        self._all = [Child(MODULE, self._memory.handle, begin) for _ in range(count)]
        for number, child in enumerate(self._all):
            self._idle.put((child, number * self._bytes))

    def __call__(self, path: str) -> NDArray[np.uint8]:
        """Return the image of a file, uint8 (S, S, 3).

        Raises:
            BadImageError: it cannot be read, or two fresh processes ended at it.
            CacheError: the processes end whatever they are asked.
        """
        child, at = self._idle.get()
        try:
            why = self._asked(child, path, at)
            if why:
                raise BadImageError(why)
            return self._memory.bytes[at : at + self._bytes].reshape(self._shape).copy()
        finally:
            self._idle.put((child, at))

    def close(self) -> None:
        """End the processes."""
        for child in self._all:
            child.close()
        self._memory.close()

    def _asked(self, child: Child, path: str, at: int) -> str:
        """Return "" where the image lies in the memory, or why it does not."""
        task = {"file": os.fspath(path), "at": at}
        for _ in range(2):  # the first end may be another's doing, such as a kill by the system
            try:
                return str(child.ask(task)["bad"])
            except EndedError as error:
                ended = str(error)
        try:
            child.ask({"file": None, "at": at})
        except EndedError as error:
            raise CacheError(
                f"The processes that decode images end by themselves: {error}.",
                "Without --on-bad-image skip images are decoded in this process.",
            ) from error
        return ended


def _begin(start: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, str]]:
    """Return what prepares the images asked for."""
    step, most = Preprocess.from_dict(start["preprocess"]), int(start["max_pixels"])
    memory = mapped(start["handle"], start["size"])
    return lambda task: {"bad": _prepared(task, memory, step, most)}


def _prepared(task: dict[str, Any], memory: NDArray[np.uint8], step: Preprocess, most: int) -> str:
    """Put the image of a file where it belongs; return "", or why it cannot be read."""
    if task["file"] is None:
        return ""
    try:
        pixels = fit(decode(read_file(task["file"]), most), step)
    except BadImageError as error:
        return error.message
    memory[task["at"] : task["at"] + pixels.size] = pixels.reshape(-1)
    return ""


if __name__ == "__main__":
    run(_begin)

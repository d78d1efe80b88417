"""A lane: batches of pixels into an extractor, rows in the stored dtype out, without waiting in between.

On a GPU everything runs behind each other on streams while the caller prepares the next batch: the pixels
as bytes to the device; resize, normalisation, network, pooling, the cast to the stored dtype and the finite
checks as one CUDA graph, replayed for every batch; the rows back to where they are wanted. On a CPU the same
steps are done by as many threads as there are streams (`runtimes.base.Work`), or, with one stream, when
`submit` returns. A graph always computes `batch_size` images; what a smaller batch leaves
of them is not looked at, so the features of an image hang neither on the rows beside it nor on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.backbones.heap import give_freed_memory_back
from featcache.backbones.preprocess import writable
from featcache.backbones.recorded import DEPTH, Flight, Program, Rows
from featcache.backbones.runtime import Extractor, frozen
from featcache.backbones.runtimes.streams import Streams
from featcache.errors import BackboneError

Resize = Callable[[Tensor], Tensor]
"""Fits decoded images of one size, uint8 (B, H, W, 3), to uint8 (B, crop, crop, 3) on their device."""


class Lane:
    """Feeds an extractor.

    Args:
        extractor: the backbone on its device.
        dtype: of the rows, "float16" or "float32".
        batch_size: images computed at once; larger batches are cut up.
        resize: gives the resize of a source size (height, width); None where images come fitted.
    """

    def __init__(
        self,
        extractor: Extractor,
        dtype: str,
        batch_size: int,
        resize: Callable[[tuple[int, int]], Resize] | None = None,
    ) -> None:
        self.extractor, self.batch_size = extractor, batch_size
        self._dtype, self._resize = getattr(torch, dtype), resize
        self.on_gpu = self._cuda = extractor.device.startswith("cuda")
        self._programs: dict[tuple[int, ...], Program] = {}
        work = extractor.work
        self._streams = Streams(work.streams, extractor.threads_each) if work.streams > 1 else None

    def close(self) -> None:
        """Stop the threads; what has begun is finished first."""
        if self._streams is not None:
            self._streams.close()
        if not self.on_gpu:
            give_freed_memory_back()

    @property
    def depth(self) -> int:
        """How many batches may be under way before the first should be waited for."""
        return DEPTH if self._cuda else self._streams.count if self._streams else 0

    @property
    def resizes(self) -> bool:
        """Whether images may come in a size of their own."""
        return self._resize is not None

    def room(self, shape: tuple[int, int]) -> NDArray[np.floating]:
        """Return memory for rows (n, D) that are quick to copy from the device."""
        if not self._cuda:
            return np.empty(shape, str(self._dtype).removeprefix("torch."))
        rows: NDArray[np.floating] = torch.empty(shape, dtype=self._dtype, pin_memory=True).numpy()
        return rows

    def prepare(self, shape: tuple[int, int]) -> None:
        """Record the graph for images of a size (height, width) now, rather than at the first batch."""
        while self._cuda:
            try:
                with torch.cuda.device(self.extractor.device), frozen(self.extractor.precision):
                    self._program((*shape, 3))
                return
            except torch.OutOfMemoryError as error:
                self._halve(error)

    def seconds(self, runs: int = 5) -> float:
        """Return the seconds a GPU takes for a batch of fitted images, the median of some runs.

        Raises:
            BackboneError: not even one image fits into the device's memory.
        """
        crop = self.extractor.crop
        self.prepare((crop, crop))
        with torch.cuda.device(self.extractor.device), frozen(self.extractor.precision):
            return self._program((crop, crop, 3)).seconds(runs)

    def submit(self, pixels: NDArray[np.uint8], rows: Rows) -> Flight:
        """Compute the rows of images, uint8 (n, crop, crop, 3) or (n, H, W, 3) of any one size.

        From pinned memory and into pinned memory nothing waits; both must be left alone until the flight
        has landed. When the device's memory runs out, the batch is halved for good.

        Raises:
            BackboneError: not even one image fits into the device's memory.
        """
        while True:
            try:
                return self._submit(pixels, rows)
            except torch.OutOfMemoryError as error:
                self._halve(error)

    def _submit(self, pixels: NDArray[np.uint8], rows: Rows) -> Flight:
        source = torch.from_numpy(writable(pixels))
        pieces = [slice(at, at + self.batch_size) for at in range(0, len(pixels), self.batch_size)]
        if not self._cuda:
            if self._streams is None:
                finite = [self._now(source[piece], rows, piece) for piece in pieces]
                return Flight([], all(finite))
            soon = [self._streams.submit(self._now, source[piece], rows, piece) for piece in pieces]
            return Flight([], soon=soon)
        with torch.cuda.device(self.extractor.device), frozen(self.extractor.precision):
            program = self._program(tuple(pixels.shape[1:]))
            return Flight([program.run(source[piece], rows, piece) for piece in pieces])

    def _now(self, pixels: Tensor, rows: Rows, piece: slice) -> bool:
        with frozen(self.extractor.precision):
            computed, finite = self._compute(pixels)
        for node, values in computed.items():
            torch.from_numpy(rows[node][piece]).copy_(values)
        return bool(finite)

    def _compute(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return node → (B, D) in the stored dtype, and whether all is finite before and after the cast."""
        crop = self.extractor.crop
        source = (int(pixels.shape[1]), int(pixels.shape[2]))
        if source != (crop, crop) and self._resize is not None:
            pixels = self._resize(source)(pixels)
        rows = self.extractor.rows(pixels)
        stored = {node: values.to(self._dtype) for node, values in rows.items()}
        finite = [torch.isfinite(values).all() for each in (rows, stored) for values in each.values()]
        return stored, torch.stack(finite).all()

    def _program(self, shape: tuple[int, ...]) -> Program:
        if shape not in self._programs:
            self._programs[shape] = Program(self._compute, self.batch_size, shape, self.extractor.device)
        return self._programs[shape]

    def _halve(self, error: Exception) -> None:
        for program in self._programs.values():
            program.drain()
        self._programs.clear()
        if self.batch_size == 1:
            raise BackboneError(
                f"One image does not fit into the memory of {self.extractor.device}: {error}",
                "Stop what else uses the device, use --image-size or --precision bf16, or --device cpu.",
            ) from error
        self.batch_size = math.ceil(self.batch_size / 2)
        if self._cuda:
            torch.cuda.empty_cache()

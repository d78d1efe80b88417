"""The computation of a batch on a GPU, recorded once as a CUDA graph and replayed, and the batches under way.

Three streams: pixels come in on one, the graph runs on another, rows leave on the third. The graph reads and
writes memory of its own; places, a few of them, hold what comes and what leaves meanwhile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEPTH = 3  # batches on the device at once: one coming, one computed, one going
WARM_UP = 2  # runs before a graph is captured: cuDNN chooses its kernels, fused ones are refused

Rows = Mapping[str, NDArray[np.floating]]
"""Node → (n, D) in the stored dtype, written to."""


class Flight:
    """A batch on its way."""

    def __init__(self, places: list[Place], finite: bool = True, soon: Sequence[Future[bool]] = ()) -> None:
        self._places, self._finite, self._soon = places, finite, soon
        for place in places:
            place.flight = self

    def wait(self) -> bool:
        """Wait until the rows are where they were asked for; return whether all are finite.

        Looked at on the device before and after the cast, so a number too large for float16 counts too.
        """
        for place in list(self._places):
            self.landed(place)
        return all([self._finite, *(one.result() for one in self._soon)])

    def settle(self) -> None:
        """Wait until nothing is written to any more, whatever became of it."""
        for place in list(self._places):
            self.landed(place)
        wait(self._soon)

    def landed(self, place: Place) -> None:
        """Wait for one piece and keep what it found, before its place is used again."""
        if place in self._places:
            self._finite &= place.wait()
            self._places.remove(place)


class Place:
    """Room on the device for one batch that is coming, computed or going."""

    def __init__(self, program: Program) -> None:
        device = program.pixels.device
        self.pixels = torch.empty_like(program.pixels)
        self.rows = {node: torch.empty_like(rows) for node, rows in program.rows.items()}
        self.finite = torch.empty_like(program.finite)
        self.verdict = torch.empty((), dtype=torch.bool).pin_memory()
        self.arrived, self.computed = torch.cuda.Event(), torch.cuda.Event()
        self.gone = torch.cuda.Event(blocking=True)  # do not spin: decoding wants the cores
        self.flight: Flight | None = None
        self.device = device

    def wait(self) -> bool:
        """Wait until its rows have left; return whether they were finite."""
        self.gone.synchronize()
        return bool(self.verdict)


class Program:
    """The computation of a batch on a GPU, recorded once and replayed, with its streams and places."""

    def __init__(
        self,
        compute: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]],
        batch_size: int,
        shape: tuple[int, ...],
        device: str,
    ) -> None:
        self.pixels = torch.zeros((batch_size, *shape), dtype=torch.uint8, device=device)
        self._coming, self._computing, self._going = (torch.cuda.Stream(device) for _ in range(3))
        self._compute = compute
        self._graph: Any = None
        self._record()
        self._places = [Place(self) for _ in range(DEPTH)]
        self._turn = 0
        torch.cuda.synchronize(device)

    def _record(self) -> None:
        """Capture the graph; a network that cannot be captured is run step by step."""
        self._computing.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._computing):
            for _ in range(WARM_UP):
                self.rows, self.finite = self._compute(self.pixels)
        self._computing.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            self._capture(graph)
            self._graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize()

    def _capture(self, graph: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a graph that failed before it raises
            # Other threads may call the driver meanwhile: only this one's calls must be capturable.
            with torch.cuda.graph(graph, stream=self._computing, capture_error_mode="thread_local"):
                self.rows, self.finite = self._compute(self.pixels)

    def run(self, pixels: Tensor, rows: Rows, piece: slice) -> Place:
        """Send a batch on its way."""
        place, n = self._places[self._turn], len(pixels)
        self._turn = (self._turn + 1) % len(self._places)
        if place.flight is not None:
            place.flight.landed(place)
        with torch.cuda.stream(self._coming):
            place.pixels[:n].copy_(pixels, non_blocking=True)
            place.arrived.record()
        with torch.cuda.stream(self._computing):
            self._computing.wait_event(place.arrived)
            self._step(place, n)
            place.computed.record()
        with torch.cuda.stream(self._going):
            self._going.wait_event(place.computed)
            for node, values in place.rows.items():
                torch.from_numpy(rows[node][piece]).copy_(values[:n], non_blocking=True)
            place.verdict.copy_(place.finite, non_blocking=True)
            place.gone.record()
        return place

    def _step(self, place: Place, n: int) -> None:
        self.pixels[:n].copy_(place.pixels[:n])
        if self._graph is None:
            self.rows, self.finite = self._compute(self.pixels)
        else:
            self._graph.replay()
        for node, values in place.rows.items():
            values.copy_(self.rows[node])
        place.finite.copy_(self.finite)

    def seconds(self, runs: int) -> float:
        """Return the seconds that one batch takes, the median of some runs on pixels that are there."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
        with torch.cuda.stream(self._computing):
            self.pixels.random_()
            events[0].record()
            for event in events[1:]:
                self._step(self._places[0], 0)
                event.record()
        self._computing.synchronize()
        times = [a.elapsed_time(b) for a, b in pairwise(events)]
        return float(np.median(times)) / 1000

    def drain(self) -> None:
        """Wait until nothing is under way."""
        for place in self._places:
            if place.flight is not None:
                place.flight.landed(place)

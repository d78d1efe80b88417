"""When what happens in an extraction, and how long every layer of the network takes; for bench/gpu.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

from featcache.backbones.fused import FusedConvolution
from featcache.backbones.lane import Lane
from featcache.backbones.recorded import Program
from featcache.backbones.runtime import Extractor, frozen
from featcache.extraction.pipeline import _Work
from featcache.extraction.reader import Reader
from featcache.extraction.writer import Writer


class Timeline:
    """When the stations of an extraction were passed, in seconds, and what the device did."""

    def __init__(self) -> None:
        self.begin, self.passed = time.perf_counter(), dict[str, float]()
        self.batches, self._events = 0, list[tuple[Any, Any]]()

    def mark(self, station: str, first: bool = False) -> None:
        """Note the time; of a station that is passed often, the first or the last."""
        if not (first and station in self.passed):
            self.passed[station] = time.perf_counter() - self.begin

    def after(self, owner: Any, method: str, station: str, first: bool = False) -> Any:
        """Return a patch that marks a station after every call of a method."""
        called: Callable[..., Any] = getattr(owner, method)

        def marked(*given: Any, **named: Any) -> Any:
            found = called(*given, **named)
            self.mark(station, first)
            return found

        return mock.patch.object(owner, method, marked)

    def watching(self) -> ExitStack:
        """Return the context in which an extraction is watched."""
        stack, step, batches = ExitStack(), Program._step, Reader.batches

        def computed(program: Program, place: Any, n: int) -> None:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            step(program, place, n)
            events[1].record()
            self._events.append((events[0], events[1]))

        def decoded(reader: Reader, parts: Any) -> Iterator[Any]:
            for batch in batches(reader, parts):
                self.mark("first batch decoded", first=True)
                self.mark("last batch decoded")
                self.batches += 1
                yield batch

        for patch in (
            self.after(Reader, "__init__", "reader made"),
            self.after(Lane, "prepare", "graph recorded"),
            mock.patch.object(Program, "_step", computed),
            mock.patch.object(Reader, "batches", decoded),
            self.after(_Work, "land", "first rows back", first=True),
            self.after(_Work, "land", "last rows back"),
            self.after(Writer, "finish", "all shards written"),
            self.after(Lane, "close", "lane closed"),
            self.after(Reader, "close", "reader closed"),
            self.after(Writer, "close", "writer closed"),
        ):
            stack.enter_context(patch)
        return stack

    def device(self) -> dict[str, float]:
        """Return the device's seconds: computing, idle between batches, and the longest time idle."""
        if not self._events:
            return {}
        torch.cuda.synchronize()
        busy = [a.elapsed_time(b) / 1e3 for a, b in self._events]
        idle = [max(0.0, b.elapsed_time(c) / 1e3) for (_, b), (c, _) in pairwise(self._events)]
        half = len(busy) // 2
        return {
            "busy": sum(busy),
            "idle between batches": sum(idle),
            "longest idle": max(idle, default=0.0),
            "a batch, median of the last half": sorted(busy[half:])[len(busy[half:]) // 2],
        }

    def lines(self) -> Iterator[str]:
        """Return what to print."""
        before = 0.0
        for station, at in sorted(self.passed.items(), key=lambda item: item[1]):
            yield f"  {station:32} at {at:7.3f} s  + {at - before:6.3f}"
            before = at
        for name, value in self.device().items():
            yield f"  device, {name:34} {value:9.4f} s"


class _Layers(fx.Interpreter):
    """Runs a network and times every node on what it is given."""

    def __init__(self, body: fx.GraphModule, measure: Callable[[Callable[[], Any]], float]) -> None:
        super().__init__(body)
        self.measure, self.found = measure, list[tuple[str, float, float]]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op in ("call_module", "call_function", "call_method"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            seconds = self.measure(lambda: getattr(self, n.op)(n.target, args, kwargs))
            kind = type(self.fetch_attr(str(n.target))).__name__ if n.op == "call_module" else str(n.target)
            self.found.append((f"{n.name} {kind}", seconds, _flop(self, n, result)))
        return result


def _flop(interpreter: fx.Interpreter, n: fx.Node, result: Any) -> float:
    """Return the operations of a convolution, 0 of anything else."""
    module: Any = interpreter.fetch_attr(str(n.target)) if n.op == "call_module" else None
    if not isinstance(module, nn.Conv2d | FusedConvolution):
        return 0.0
    return 2.0 * result[:, :1].numel() * module.weight.numel()


def layers(
    extractor: Extractor, size: int, measure: Callable[[Callable[[], Any]], float]
) -> list[tuple[str, float, float]]:
    """Return (name, microseconds an image, TFLOP/s) of every node of the network, each alone."""
    pixels = torch.randint(256, (size, extractor.crop, extractor.crop, 3), dtype=torch.uint8)
    with frozen(extractor.precision):
        timed = _Layers(extractor._body, measure)
        timed.run(extractor._normalise(pixels))
    return [(name, 1e6 * took / size, flop / took / 1e12) for name, took, flop in timed.found]

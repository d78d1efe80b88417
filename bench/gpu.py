"""Where the time of an extraction goes on one device, stage by stage: python bench/gpu.py --help.

Prints what the machine can do (matrix product, copies), what each stage could do if it were alone, in images
a second, and what all of them do together, from files to a sealed cache; then the fraction of the
forward-only rate that the whole reaches, and the narrowest stage. Every stage is the code that extraction
runs. Nothing is measured on zeros. On a CPU everything runs too, in its own way.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from timeline import Timeline, layers  # beside this file

from featcache import atomic
from featcache.backbones import graph
from featcache.backbones.lane import Lane
from featcache.backbones.runtime import PRECISIONS, Extractor, frozen
from featcache.extraction import pipeline
from featcache.extraction.batch_size import batch_size
from featcache.extraction.engines import compute
from featcache.extraction.extract import _create, open_job, source_of
from featcache.extraction.reader import Reader
from featcache.extraction.request import Request, Settings
from featcache.extraction.resolve import Job
from featcache.images.cores import cores
from featcache.store import layout, shard
from featcache.store.cache import Cache


def say(text: str) -> None:
    print(text, flush=True)


def seconds(step: Callable[[], Any], device: str, runs: int, recorded: bool = True) -> float:
    """Return the median seconds of a step: on a GPU of its kernels, from a graph if `recorded`."""
    if device == "cpu":
        step()
        return statistics.median(clock(step) for _ in range(runs))
    torch.cuda.synchronize(device)
    stream, graphed = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        step(), step()
    stream.synchronize()
    if recorded:
        with torch.cuda.graph(graphed, stream=stream):
            kept = step()  # noqa: F841  # its memory belongs to the graph
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 2)]
    with torch.cuda.stream(stream):
        for event in events:
            (graphed.replay if recorded else step)()
            event.record()
    stream.synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in pairwise(events[1:]))


def clock(step: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


@dataclass
class Bench:
    """One extraction taken apart."""

    job: Job
    extractor: Extractor
    cache: Cache
    size: int  # images a batch
    runs: int

    @property
    def device(self) -> str:
        """The device of the backbone."""
        return self.extractor.device

    def machine(self, side: int) -> dict[str, float]:
        """Return TFLOP/s of a matrix product in the precision, and GB/s of copies."""
        dtype = PRECISIONS[self.extractor.precision]
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        with frozen(self.extractor.precision):
            rates = {"matrix TFLOP/s": 2e-12 * side**3 / seconds(lambda: a @ b, self.device, self.runs)}
        far = torch.randint(256, (64 << 20,), dtype=torch.uint8, device=self.device)
        near = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=self.device != "cpu")
        other = torch.empty_like(far)
        for name, step, moved in (
            ("to the device GB/s", lambda: far.copy_(near, non_blocking=True), 1),
            ("from the device GB/s", lambda: near.copy_(far, non_blocking=True), 1),
            ("on the device GB/s", lambda: other.copy_(far), 2),
        ):
            rates[name] = moved * (64 << 20) / 1e9 / seconds(step, self.device, self.runs, False)
        return rates

    def flop(self) -> float:
        """Return the floating-point operations of one image, a multiplication and an addition being two."""
        network = copy.deepcopy(self.job.network).to("meta")
        network = graph.cut(graph.trace(network), self.job.recipe.nodes)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, self.extractor.crop, self.extractor.crop, device="meta"))
        return float(counter.get_total_flops())

    def on_the_device(self, own: tuple[int, int] | None) -> dict[str, float]:
        """Return images a second of what the device computes, part by part, and of all of it as one graph."""
        crop, device, runs = self.extractor.crop, self.device, self.runs
        pixels = torch.randint(256, (self.size, crop, crop, 3), dtype=torch.uint8, device=device)
        lane = pipeline.lane_of(self.cache.recipe, self.extractor, self.size)
        steps: dict[str, Callable[[], Any]] = {}
        with frozen(self.extractor.precision):
            images = self.extractor._normalise(pixels)
            rows = self.extractor.rows(pixels)
            if own is not None and lane._resize is not None:
                small = torch.randint(256, (self.size, *own, 3), dtype=torch.uint8, device=device)
                steps["resize"] = partial(lane._resize(own), small)
            steps["normalise"] = partial(self.extractor._normalise, pixels)
            steps["forward only"] = partial(self.extractor._body, images)
            steps["cast and check"] = partial(_cast_and_check, rows, lane._dtype)
            return {name: self.size / seconds(step, device, runs) for name, step in steps.items()}

    def copies(self, own: tuple[int, int] | None) -> dict[str, float]:
        """Return images a second of pixels to the device and rows from it, in the memory extraction uses."""
        crop = self.extractor.crop
        reading = pipeline.reading(
            pipeline.lane_of(self.cache.recipe, self.extractor, self.size), self.size, 1, 1
        )
        near = np.random.default_rng(0).integers(
            0, 256, (self.size, *(own or (crop, crop)), 3), dtype=np.uint8
        )
        undo = reading.pin(near.reshape(-1)) if reading.pin else lambda: None
        far = torch.from_numpy(near).to(self.device)
        lane = Lane(self.extractor, self.cache.row_dtype, self.size)
        room = [torch.from_numpy(lane.room((self.size, width))) for width in self.cache.columns.values()]
        rows = [torch.randn(each.shape, device=self.device).to(each.dtype) for each in room]

        def back() -> None:
            for here, there in zip(room, rows, strict=True):
                here.copy_(there, non_blocking=True)

        source = torch.from_numpy(near)
        try:
            return {
                "pixels there": self.size
                / seconds(lambda: far.copy_(source, non_blocking=True), self.device, self.runs, False),
                "rows back": self.size / seconds(back, self.device, self.runs, False),
            }
        finally:
            undo()

    def decode(self) -> tuple[dict[str, float], tuple[int, int] | None]:
        """Return images a second of reading alone, and the size in which images come if not fitted."""
        lane = pipeline.lane_of(self.cache.recipe, self.extractor, self.size)
        how = pipeline.reading(lane, self.size, None, self.job.request.max_pixels)
        reader = Reader(self.job.dataset, self.job.recipe.preprocess, how)
        shape: tuple[int, ...] = ()
        images, begin = 0, time.perf_counter()
        try:
            for number, batch in enumerate(reader.batches(iter(self.cache.shards()))):
                if number == reader._ahead:  # the threads or processes are there
                    images, begin = 0, time.perf_counter()
                images, shape = images + len(batch.pixels), batch.pixels.shape[1:]
                reader.give(batch)
            rate = images / (time.perf_counter() - begin)
        finally:
            reader.close()
        fitted = shape == (self.extractor.crop, self.extractor.crop, 3)
        return {"decode" if not fitted else "decode and fit": rate}, None if fitted else (shape[0], shape[1])

    def shards(self, folder: Path, threads: int) -> dict[str, float]:
        """Return images a second of making, hashing and writing a whole shard, by one thread each."""
        part = max(self.cache.shards(), key=len)
        n, dtype = len(part), self.cache.row_dtype
        rng = np.random.default_rng(0)
        features = {
            node: rng.standard_normal((n, width), np.float32).astype(dtype)
            for node, width in self.cache.columns.items()
        }
        numbers = np.arange(n)
        arrays = partial(shard.arrays, features, numbers, numbers, np.zeros(n, np.uint8))
        pieces = layout.pieces(arrays())
        times = {
            "shard: lay out": statistics.median(clock(lambda: layout.pieces(arrays())) for _ in range(5)),
            "shard: hash": statistics.median(clock(lambda: layout.hash_of(pieces)) for _ in range(5)),
            "shard: write, fsync": statistics.median(
                clock(lambda: atomic.write(folder / "shard", pieces)) for _ in range(5)
            ),
        }
        rates = {name: n / each for name, each in times.items()}
        rates[f"shard: all, {threads} threads"] = threads / sum(1 / rate for rate in rates.values())
        return rates


def _cast_and_check(rows: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    stored = {node: values.to(dtype) for node, values in rows.items()}
    return stored, [torch.isfinite(values).all() for each in (rows, stored) for values in each.values()]


def whole(job: Job, extractor: Extractor, settings: Settings, size: int, rounds: int) -> list[float]:
    """Return images a second from files to a sealed cache, one for each round, in a warm process."""
    rates = []
    for number in range(rounds):
        here = Settings(settings.features_dir / str(number), settings.data_dir, settings.device, size)
        begin = time.perf_counter()
        cache = _create(job, here, dict(extractor.columns))
        images = compute(cache, job, extractor, here, lambda *news: None)
        cache.seal()
        rates.append(images / (time.perf_counter() - begin))
        shutil.rmtree(here.features_dir)
    return rates


def watched(job: Job, extractor: Extractor, settings: Settings, size: int) -> Timeline:
    """Return when what happened in one more extraction."""
    here = Settings(settings.features_dir / "watched", settings.data_dir, settings.device, size)
    found = Timeline()
    with found.watching():
        cache = _create(job, here, dict(extractor.columns))
        found.mark("cache created")
        compute(cache, job, extractor, here, lambda *news: None)
        found.mark("computed")
        cache.seal()
        found.mark("sealed")
    shutil.rmtree(here.features_dir)
    return found


def measure(request: Request, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = Settings(folder / "features", folder / "data", asked.device, asked.batch_size)
    begin = time.perf_counter()
    job = open_job(request, source_of(request, settings), lambda *news: None)
    opened = time.perf_counter() - begin
    hashed = clock(lambda: job.key)
    extractor = job.extractor(asked.device)
    cache = _create(job, settings, dict(extractor.columns))
    rows = max(len(part) for part in cache.shards())
    size = batch_size(asked.batch_size, extractor, job.recipe, rows, settings.features_dir)
    bench = Bench(job, extractor, cache, size, asked.runs)
    machine = bench.machine(asked.side)
    decoded, own = bench.decode()
    computed = bench.on_the_device(own)
    threads = pipeline.WRITERS if extractor.device != "cpu" else 1
    stages = {**decoded, **bench.copies(own), **computed, **bench.shards(folder, threads)}
    rates = whole(job, extractor, settings, size, asked.rounds)
    for line in watched(job, extractor, settings, size).lines() if asked.timeline else ():
        say(line)
    measured = partial(seconds, device=extractor.device, runs=asked.runs)
    for name, micro, tera in layers(extractor, size, measured) if asked.layers else ():
        say(f"  {name:44} {micro:8.2f} us an image  {tera:7.1f} TFLOP/s")
    flop = bench.flop()
    forward = stages["forward only"]
    # What of a stage is not hidden behind another: one shard is laid out, hashed and written by one thread.
    alone = {name: rate for name, rate in stages.items() if not name.startswith("shard:") or "all" in name}
    return {
        "backbone": request.backbone,
        "precision": request.precision,
        "device": torch.cuda.get_device_name(extractor.device) if extractor.device != "cpu" else "cpu",
        "torch": torch.__version__,
        "cores": cores(),
        "images": len(job.dataset),
        "batch": size,
        "columns": sum(extractor.columns.values()),
        "opening s": opened,
        "hashing s": hashed,
        "machine": machine,
        "stages": stages,
        "rounds": rates,
        "whole": max(rates),
        "of forward only": max(rates) / forward,
        "GFLOP an image": flop / 1e9,
        "forward, of matrix rate": forward * flop / 1e12 / machine["matrix TFLOP/s"],
        "whole, of matrix rate": max(rates) * flop / 1e12 / machine["matrix TFLOP/s"],
        "narrowest": min(alone, key=lambda name: alone[name]),
    }


def show(found: dict[str, Any]) -> None:
    head = ("backbone", "precision", "device", "torch", "cores", "images", "batch", "columns")
    say("  ".join(f"{name} {found[name]}" for name in head))
    for name, rate in found["machine"].items():
        say(f"  {name:32} {rate:10.1f}")
    say(f"  {'opening and hashing, s':32} {found['opening s']:10.2f} {found['hashing s']:10.2f}")
    for name, rate in found["stages"].items():
        say(f"  {name:32} {rate:10.0f} images/s")
    rounds = ", ".join(f"{rate:.0f}" for rate in found["rounds"])
    say(f"  {'whole, files to sealed cache':32} {found['whole']:10.0f} images/s  (rounds {rounds})")
    for name in ("of forward only", "forward, of matrix rate", "whole, of matrix rate"):
        say(f"  {name:32} {found[name]:10.3f}")
    say(f"  narrowest stage: {found['narrowest']}")


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--limit", type=int, help="images of each class and split")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=3, help="of the whole")
    parser.add_argument("--runs", type=int, default=10, help="of each stage on the device")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices")
    parser.add_argument("--folder", type=Path, help="where caches are made [default: temporary]")
    parser.add_argument("--timeline", action="store_true", help="tell when what happens in an extraction")
    parser.add_argument("--layers", action="store_true", help="tell how long every layer takes")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args(given)


def main(given: list[str]) -> None:
    asked = arguments(given)
    found = []
    for backbone in asked.backbone or ["vgg16"]:
        folder = Path(tempfile.mkdtemp(dir=asked.folder))
        try:
            request = Request(
                asked.dataset,
                backbone,
                "random:0",
                precision=asked.precision,
                image_size=asked.image_size,
                limit=asked.limit,
            )
            found.append(measure(request, asked, folder))
            show(found[-1])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + os.linesep)


if __name__ == "__main__":
    main(sys.argv[1:])

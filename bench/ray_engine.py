"""Ray's actors against the engine of this machine: images/s, efficiency, and the driver's memory.

    python bench/ray_engine.py --data folder:DIR [--actors 1 2] [--cpus 1] [--device cpu|cuda] [--runs 3]

Each run fills a fresh cache. The plain engine runs in a process of its own with as many threads as one actor
has; a Ray run is timed from when all actors should have embedded their first shards until the last shard is
committed (`rate`), and beside it the whole of it, cluster included (`seconds`). Efficiency is images/s over
actors × the plain engine's. Runs take turns, so that whatever else the machine does falls on all alike; the
median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def size(what: str) -> float:
    """Return the resident size of this process, now (VmRSS) or at most (VmHWM), in MB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{what}:")[2].split()[0]) / 1024


def one(asked: dict[str, Any]) -> dict[str, Any]:
    """Fill a cache; return images, seconds, the rate between the first shards and the end, and memory."""
    from featcache.extraction.extract import extract
    from featcache.extraction.request import Request, Settings

    told: list[tuple[float, int]] = []
    sizes: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        """Note when shards were committed, and how large this process was then."""
        if what in ("train", "val", "test"):
            told.append((time.perf_counter(), done))
            sizes.append(size("VmRSS"))

    ray = asked["actors"] > 0
    options = {"engine": "ray", "ray_actors": asked["actors"]} if ray else {}
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as place:
        settings = Settings(
            Path(place), Path(place) / "data", asked["device"], workers=asked["cpus"],
            rows_per_shard=asked["shard"], batch_size=asked["batch"], runtime="torch", **options,
        )  # fmt: skip
        request = Request(asked["data"], asked["backbone"], "random:0", image_size=asked["size"])
        start = time.perf_counter()
        found = extract(request, settings, progress)
        seconds = time.perf_counter() - start
    # Progress counts rows by split: shards of one size are told one by one, behind a line for each split.
    begin = 2 + 2 * max(1, asked["actors"])
    middle = told[begin:]
    rate = (len(middle) - 1) * asked["shard"] / (middle[-1][0] - middle[0][0])
    quarter = max(1, len(sizes) // 4)
    return {
        "images": found.images,
        "seconds": round(seconds, 2),
        "rate": round(rate, 1),
        "driver_mb_at_a_quarter": round(sizes[quarter]),
        "driver_mb_at_the_end": round(sizes[-1]),
    }


def run(asked: dict[str, Any], actors: int) -> dict[str, Any]:
    """Do one run in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked["cpus"]), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--one", json.dumps({**asked, "actors": actors}), "--data", ""]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--data", required=True, metavar="folder:DIR")
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--shard", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one")
    asked = vars(parser.parse_args())
    if asked["one"]:
        print(json.dumps(one(json.loads(asked["one"]))))
        return
    asked["folder"] = None if asked["folder"] is None else str(asked["folder"])
    found: dict[int, list[dict[str, Any]]] = {actors: [] for actors in (0, *asked["actors"])}
    for _ in range(asked["runs"]):
        for actors, runs in found.items():
            runs.append(run(asked, actors))
            print(actors or "plain", json.dumps(runs[-1]), flush=True)
    plain = statistics.median(each["rate"] for each in found[0])
    for actors, runs in found.items():
        rate = statistics.median(each["rate"] for each in runs)
        print(f"{actors or 'plain':>6} {rate:8.1f} images/s  efficiency {rate / plain / max(1, actors):.2f}")


if __name__ == "__main__":
    main()

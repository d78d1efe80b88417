"""Object storage: what its protocol costs beside local folders, on a server on this machine's loopback.

The server is moto's, one Python process on the same cores, which does far more for a request than one that is
made for it, and there is nearly no network: the figures say what our side costs, not what a store gives.
Extraction is of the same images, in the same shards, from and to a folder and a bucket in turns; epochs of a
head are of a plain folder, of a mirror with nothing in it yet, and of one with all of it there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
PORT = 5599


def serve() -> subprocess.Popen[bytes]:
    """Start a server in a process of its own."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{PORT}")
    import fsspec

    for _ in range(100):
        try:
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bench")
            break
        except Exception:  # not up yet
            time.sleep(0.2)
    return server


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def images(folder: Path, count: int) -> None:
    """Write JPEG files of noise around a colour, in two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / "train" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (256, 256, 3)) + 60 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:05d}.jpg", quality=85)


def extraction(place: Path, backbone: str, count: int, rounds: int) -> None:
    """Compare extraction from and to a folder with that from and to a bucket."""
    import fsspec

    from featcache.extraction.extract import extract
    from featcache.extraction.request import Request, Settings
    from featcache.objects import Objects
    from featcache.store import keeping

    folder = place / "photos"
    images(folder, count)
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in folder.rglob("*.jpg"):
        store.put_file(str(path), f"bench/photos/{path.relative_to(folder)}")
    os.environ["FEATCACHE_MIRROR"] = str(place / "mirrors")
    took: dict[str, list[float]] = {}
    photos = Objects("s3://bench/photos")
    names = list(photos.list())
    took["fetching the images, nothing else"] = [
        timed(lambda: list(photos.get_all(names))) for _ in range(rounds)
    ]
    sources = {"folder": f"folder:{folder}", "bucket": "folder:s3://bench/photos"}
    targets = {"folder": str(place / "features"), "bucket": "s3://bench/features"}
    for number in range(rounds):
        for (source, images_at), (target, features) in itertools.product(sources.items(), targets.items()):
            request = Request(dataset=images_at, backbone=backbone, weights="random:0", image_size=64)
            where = keeping.local(f"{features}-{source}-{number}")
            settings = Settings(where, runtime="torch", device="cpu", batch_size=16, rows_per_shard=64)
            found = extract(request, settings)
            name = f"images in a {source}, features in a {target}"
            took.setdefault(name, []).append(found.extraction_seconds)
            took.setdefault(f"{name}, all told", []).append(found.seconds)
    print(f"{backbone}, {count} images of 256 x 256, shards of 64 rows; s, median of {rounds}")
    for name, seconds in sorted(took.items()):
        print(f"  {name:<56}{statistics.median(seconds):8.3f}   least {min(seconds):.3f}")


def epochs(place: Path, rows: int, columns: int, rounds: int) -> None:
    """Compare the first reading of a cache, shards fetched, with those after it and with a plain folder."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from featcache.store import keeping
    from featcache.store.cache import Cache
    from featcache.training.fit import Training, train
    from tests import kit_objects
    from tests.kit_caches import empty_cache

    def fill(where: Path) -> Cache:
        cache = empty_cache(where, {"train": rows}, {"flatten": columns}, rows_per_shard=2048)
        rng = np.random.default_rng(0)
        for part in cache.todo():
            cache.commit(part, {"flatten": rng.normal(size=(len(part), columns)).astype(np.float16)})
        cache.seal()
        return cache

    url, size = "s3://bench/epochs", rows * columns * 2 / 1e6
    plain = fill(place / "plain")
    fill(keeping.local(url, place / "writer"))
    head = Training("linear", {"epochs": 1, "batch_size": 512})
    took: dict[str, list[float]] = {name: [] for name in ("plain folder", "mirror, first", "mirror, second")}
    for number in range(rounds):
        kit_objects.forget()
        mirror = Cache(keeping.local(url, place / f"reader{number}") / plain.name)
        took["mirror, first"].append(timed(lambda mirror=mirror: train(mirror, head)))
        took["mirror, second"].append(timed(lambda mirror=mirror: train(Cache(mirror.path), head)))
        took["plain folder"].append(timed(lambda: train(Cache(plain.path), head)))
    print(f"\none epoch of a linear head, {rows} x {columns} float16 ({size:.0f} MB); s, median of {rounds}")
    for name, seconds in took.items():
        print(f"  {name:<56}{statistics.median(seconds):8.3f}   least {min(seconds):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    server = serve()
    try:
        with tempfile.TemporaryDirectory() as folder:
            extraction(Path(folder), options.backbone, options.images, options.rounds)
            epochs(Path(folder), options.rows, options.columns, options.rounds)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()

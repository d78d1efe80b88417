"""What it costs to extract again when a folder has changed, in shares of what it cost at first.

    python bench/grow.py --data DIR --weights FILE --work DIR [--images 4000] [--share .01]

DIR has images of CIFAR-10 as DIR/{train,test}/<class>/*. So many of them are copied to a folder of our own
and extracted; then a share is added, a class is renamed, images are deleted and doubled under other names,
and each time the same is asked for again, in one process. At last images are added once more with all that
is remembered of the files thrown away, so that every one is read. Beside it the whole command, in a process
of its own, that has nothing to compute: what start-up costs, whatever the number of images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings

REST = 2.5  # seconds until a file counts as being at rest


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", default="torch")
    return parser.parse_args()


class Bench:
    """A folder of images that changes, and the command that is run again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.photos = options, options.work / "photos"
        self.features = options.work / "features"
        for folder in (self.photos, self.features, options.work / "warm"):
            shutil.rmtree(folder, ignore_errors=True)
        every = sorted((options.data / "train").rglob("*.jpg"))
        step = max(1, len(every) // int(options.images * (1 + 4 * options.share)))
        self._left = every[::step]
        self.lines: list[dict[str, Any]] = []
        self.request = Request(f"folder:{self.photos}", options.backbone, options.weights)
        self.settings = Settings(self.features, device=options.device, runtime=options.runtime)

    def add(self, count: int) -> None:
        """Copy images that were not there yet."""
        some, self._left = self._left[:count], self._left[count:]
        for path in some:
            split = "test" if hash_of(path) % 6 == 0 else "train"
            target = self.photos / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    def shuffle(self) -> None:
        """Take images of all classes first."""
        self._left.sort(key=hash_of)

    def run(self, what: str) -> None:
        """Extract and note what it took."""
        time.sleep(REST)
        begin = time.perf_counter()
        found = extract(self.request, self.settings)
        seconds = time.perf_counter() - begin
        first = self.lines[0]["seconds"] if self.lines else seconds
        line = {"what": what, "seconds": round(seconds, 3), "share": round(seconds / first, 4)}
        line |= {"images": sum(found.rows.values()), "computed": found.images, "copied": found.copied}
        self.lines.append(line)
        print(json.dumps(line), flush=True)

    def command(self) -> None:
        """Run the whole command on images that are all there, under other names, in a process of its own."""
        for split in ("train", "test"):
            (self.photos / split / "cat").rename(self.photos / split / "tomcat")
        asked, options = self.request, self.options
        command = [sys.executable, "-m", "featcache", "extract", "--dataset", asked.dataset]
        command += ["--backbone", asked.backbone, "--weights", asked.weights, "--device", options.device]
        command += ["--runtime", options.runtime, "--features-dir", str(self.features), "--json"]
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        print(json.dumps({"what": "a whole command", "seconds": round(time.perf_counter() - begin, 2)}))


def hash_of(path: Path) -> int:
    """Return a number that has nothing to do with the class."""
    return int.from_bytes(path.name.encode()[-9:-4], "big") * 2654435761 % 2**32


def main() -> None:
    """Run all."""
    bench = Bench(parsed())
    options, photos = bench.options, bench.photos
    few = round(options.images * options.share)
    bench.shuffle()
    bench.add(20)
    extract(bench.request, Settings(options.work / "warm", device=options.device, runtime=options.runtime))
    bench.add(options.images - 20)
    bench.run("all, from nothing")
    bench.run("the same again (a hit)")
    steps: list[tuple[str, Callable[[], Any]]] = [
        (f"{few} images added", lambda: bench.add(few)),
        (
            "a class renamed",
            lambda: [(photos / s / "frog").rename(photos / s / "toad") for s in ("train", "test")],
        ),
        (f"{few} images deleted", lambda: [p.unlink() for p in sorted(photos.rglob("*.jpg"))[::97][:few]]),
        (f"{few} images doubled under other names", lambda: doubled(photos, few)),
        (f"{few} images added, nothing remembered", lambda: (bench.add(few), forget(bench.features))),
    ]
    for what, change in steps:
        change()
        bench.run(what)
    bench.command()


def doubled(photos: Path, count: int) -> None:
    """Copy images to another class and split."""
    for path in sorted((photos / "train" / "ship").iterdir())[:count]:
        shutil.copy(path, photos / "test" / "truck" / f"again-{path.name}")


def forget(features: Path) -> None:
    """Throw away what is remembered of the files."""
    shutil.rmtree(features / ".featcache" / "contents")


if __name__ == "__main__":
    main()

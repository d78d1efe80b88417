"""Peak memory of an extraction against the number of images: it must not grow with it.

Every image is one small image with its number after its end, where no decoder looks (equal files would be
computed once), the backbone small, so that many rows go through quickly.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PER_FOLDER = 5000


def folder_of(root: Path, count: int, suffix: str) -> Path:
    """Make an image folder of `count` files in classes of 5000."""
    pixels, image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(image, {"jpg": "JPEG"}.get(suffix, suffix))
    for number in range(count):
        folder = root / "train" / f"class {number // PER_FOLDER:03d}"
        if number % PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:07d}.{suffix}").write_bytes(image.getvalue() + number.to_bytes(4, "big"))
    return root


def peak(command: list[str]) -> tuple[float, float]:
    """Return the peak resident memory in MB and the seconds of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--suffix", default="jpg", help="bmp is quicker to decode")
    parser.add_argument("--layer", help="read here instead of at the end, for more images a second")
    options = parser.parse_args()
    first = None
    for count in options.counts:
        with tempfile.TemporaryDirectory() as name:
            data = folder_of(Path(name) / "images", count, options.suffix)
            asked = f"--backbone {options.backbone} --weights random:0 --image-size {options.image_size}"
            asked += (
                " --runtime torch"  # the trial of others, worth it for many images, loads their libraries
            )
            asked += f" --layer {options.layer}" if options.layer else ""
            command = [sys.executable, "-m", "featcache", "extract", "--dataset", f"folder:{data}"]
            megabytes, seconds = peak([*command, *asked.split(), "--features-dir", f"{name}/features"])
        first = first or megabytes
        ratio = megabytes / first
        print(f"{count:>9} images  peak {megabytes:7.1f} MB ({ratio:.3f} of the first)  {seconds:.0f} s")


if __name__ == "__main__":
    main()

"""Resize, side by side in one process: rates on one thread, equality with Pillow, beside a forward pass.

python bench/resize.py [--images DIR] [--backbone squeezenet1_0]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import resize

from featcache.backbones import catalogue, weights
from featcache.backbones.fitting import fit_all
from featcache.backbones.preprocess import fit
from featcache.backbones.resize import resizer
from featcache.backbones.runtime import Extractor
from featcache.images.decode import decode
from featcache.recipe import Preprocess

COUNT = 32


def best(work: Callable[[], object], times: int = 5) -> float:
    """Return microseconds an image, the best of a few times."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / COUNT * 1e6


def compare(images: NDArray[np.uint8], step: Preprocess) -> None:
    """Print one line for each way to resize images (n, H, W, 3)."""
    out = np.empty((len(images), step.crop, step.crop, 3), np.uint8)
    wanted = np.stack([fit(image, step) for image in images])
    tensors = torch.from_numpy(images)
    work = resizer((images.shape[1], images.shape[2]), step)
    size = [step.crop, step.crop]
    inexact = resize(tensors.permute(0, 3, 1, 2), size, antialias=True).permute(0, 2, 3, 1).numpy()
    apart = np.abs(inexact.astype(int) - wanted)
    fit_all(list(images), step, out)
    ways: dict[str, tuple[Callable[[], object], bool]] = {
        "Pillow, one by one": (lambda: [fit(image, step) for image in images], True),
        "fit_all (numpy)": (lambda: fit_all(list(images), step, out), np.array_equal(out, wanted)),
        "Resizer (torch)": (lambda: work(tensors), np.array_equal(work(tensors).numpy(), wanted)),
        "torchvision, uint8": (
            lambda: resize(tensors.permute(0, 3, 1, 2), size, antialias=True),
            np.array_equal(inexact, wanted),
        ),
    }
    for name, (call, equal) in ways.items():
        print(f"  {name:<20} {best(call):8.0f} us an image   {'equal' if equal else 'not equal'}")
    different = 100 * np.mean(apart > 0)
    print(f"  torchvision's: {different:.2f} % of the bytes differ, by at most {apart.max()} levels")


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=Path, help="a folder of small JPEGs of one size")
    arguments.add_argument("--backbone", default="squeezenet1_0")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    step, rng = Preprocess("squash", 224, 224), np.random.default_rng(0)
    data = (
        [] if given.images is None else [p.read_bytes() for p in sorted(given.images.rglob("*.jpg"))[:COUNT]]
    )
    if data:
        print(f"real images: decode {best(lambda: [decode(each) for each in data]):.0f} us an image")
        compare(np.stack([decode(each) for each in data]), step)
    for side in (28, 64, 320):
        print(f"noise, {side} x {side} to 224 x 224")
        compare(rng.integers(0, 256, (COUNT, side, side, 3), dtype=np.uint8), step)
    state, _ = weights.load(given.backbone, weights.resolve(given.backbone, "random:0"))
    network = weights.assemble(given.backbone, state)
    extractor = Extractor(network, catalogue.resolve_nodes(given.backbone, network), step)
    pixels = rng.integers(0, 256, (COUNT, 224, 224, 3), dtype=np.uint8)
    print(f"{given.backbone}, float32, one thread: {best(lambda: extractor(pixels), 2):.0f} us an image")


if __name__ == "__main__":
    main()

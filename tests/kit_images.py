"""Small image folders for the tests, made from noise with a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("alpine chough", "bee", "cat")


def make_folder(root: Path, train: int = 8, test: int = 4, seed: int = 0, suffix: str = "png") -> Path:
    """Write root/{train,test}/<class>/*.png: noise around a colour of the class, of several sizes."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                height, width = rng.integers(24, 90, size=2)
                colour = np.eye(3)[label] * 120
                pixels = rng.integers(0, 120, size=(height, width, 3)) + colour
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.{suffix}")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

"""Augmentation of training images, drawn anew in every epoch from (seed, epoch, row) alone.

The policies are those of torchvision.transforms.v2, on images before they are fitted to the network's input:
flip: mirrored with probability .5 · crop: a region of half to all of the area, 3:4 to 4:3
· jitter: brightness, contrast and saturation times .6 to 1.4, hue ± .1 · autoaugment: Cubuk et al. (CVPR
2019), the policy learned on ImageNet · randaugment: Cubuk et al. (2020), two operations of magnitude 9
· trivialaugment: Müller and Hutter (ICCV 2021), the wide space. Several are applied in the order given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from featcache.backbones.preprocess import writable


class Region(v2.RandomResizedCrop):
    """The region that `RandomResizedCrop` draws, in its own size: fitting to the network's input follows."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the region."""
        return v2.functional.crop(inpt, **params)


_POLICIES: dict[str, Callable[[], Any]] = {
    "flip": v2.RandomHorizontalFlip,
    "crop": lambda: Region(1, scale=(0.5, 1.0)),
    "jitter": lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "autoaugment": v2.AutoAugment,
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}


class Augment:
    """Policies in a row, for images of any size."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._steps = v2.Compose([_POLICIES[name]() for name in names])
        self._seed = seed

    def __call__(self, image: NDArray[np.uint8], epoch: int, row: int) -> NDArray[np.uint8]:
        """Return an image uint8 (H, W, 3) as this epoch sees it; torch's own generator is left as it was."""
        pixels = torch.from_numpy(writable(image)).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw(self._seed, epoch, row))
            changed: Tensor = self._steps(pixels)
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())


def draw(*numbers: int) -> int:
    """Return a seed, 0 … 2**63 - 1, that depends on all of the numbers."""
    text = " ".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

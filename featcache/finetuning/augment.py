"""Augmentation of training images, drawn anew in every epoch from (seed, epoch, row) alone.

The policies are those of torchvision.transforms.v2, on images already fitted to the network's input:
flip: mirrored with probability .5 · crop: a region of half to all of the area, 3:4 to 4:3, resized back
· jitter: brightness, contrast and saturation times .6 to 1.4, hue ± .1 · autoaugment: Cubuk et al. (CVPR
2019), the policy learned on ImageNet · randaugment: Cubuk et al. (2020), two operations of magnitude 9
· trivialaugment: Müller and Hutter (ICCV 2021), the wide space. Several are applied in the order given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

_POLICIES: dict[str, Callable[[int], Any]] = {
    "flip": lambda size: v2.RandomHorizontalFlip(),
    "crop": lambda size: v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
    "jitter": lambda size: v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "autoaugment": lambda size: v2.AutoAugment(),
    "randaugment": lambda size: v2.RandAugment(),
    "trivialaugment": lambda size: v2.TrivialAugmentWide(),
}


class Augment:
    """Policies in a row, for images of S × S pixels."""

    def __init__(self, names: Sequence[str], size: int, seed: int) -> None:
        self._steps = v2.Compose([_POLICIES[name](size) for name in names])
        self._seed = seed

    def __call__(self, image: Tensor, epoch: int, row: int) -> Tensor:
        """Return an image uint8 (S, S, 3) as this epoch sees it; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw(self._seed, epoch, row))
            changed: Tensor = self._steps(image.permute(2, 0, 1))
        return changed.permute(1, 2, 0).contiguous()


def draw(*numbers: int) -> int:
    """Return a seed, 0 … 2**63 - 1, that depends on all of the numbers."""
    text = " ".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

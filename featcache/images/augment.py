"""Augmented views of decoded images, by torchvision's transforms, each drawn from its own generator.

torchvision draws from torch's one global generator. Here each view has a generator of its own, seeded by
the views' seed, the sample's id and the view's number, and a mode of torch, which belongs to the thread that
entered it, hands that generator to every function that draws. So views may be made in any number of threads,
in any order, and nothing global is read or changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

from featcache.errors import BadImageError
from featcache.images.policies import Policy

Pixels = NDArray[np.uint8]

_DRAWS = {
    torch.rand,
    torch.randn,
    torch.randint,
    torch.randperm,
    torch.multinomial,
    torch.normal,
    torch.bernoulli,
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.random_,
    torch.Tensor.bernoulli_,
}
"""The functions of torch that draw, as far as torchvision's transforms call any."""


class OwnRandom(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """While it is entered, functions of torch that draw in this thread draw from a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, with the generator where it draws."""
        given = dict(kwargs or {})
        if func in _DRAWS and given.get("generator") is None:
            given["generator"] = self._generator
        return func(*args, **given)


class Region(v2.RandomResizedCrop):
    """The region that `RandomResizedCrop` draws, in its own size: the backbone's resize follows anyway."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the region."""
        return v2.functional.crop(inpt, **params)


_MADE: dict[str, Callable[[Mapping[str, Any]], v2.Transform]] = {
    "flip": lambda o: v2.RandomHorizontalFlip(o["p"]),
    "vertical-flip": lambda o: v2.RandomVerticalFlip(o["p"]),
    "crop": lambda o: Region(1, tuple(o["scale"]), tuple(o["ratio"])),
    "jitter": lambda o: v2.ColorJitter(o["brightness"], o["contrast"], o["saturation"], o["hue"]),
    "grey": lambda o: v2.RandomGrayscale(o["p"]),
    "blur": lambda o: v2.GaussianBlur(o["kernel"], tuple(o["sigma"])),
    "rotate": lambda o: v2.RandomRotation(o["degrees"], v2.InterpolationMode.BILINEAR),
    "autoaugment": lambda o: v2.AutoAugment(v2.AutoAugmentPolicy(o["policy"])),
    "randaugment": lambda o: v2.RandAugment(o["num_ops"], o["magnitude"]),
    "trivialaugment": lambda o: v2.TrivialAugmentWide(),
}


class Augmenter:
    """Makes views of images; safe in many threads at once.

    Args:
        policy: its steps, in order, checked.
        seed: of all views.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self.seed = seed
        self._steps = [_MADE[step["name"]](step) for step in policy]

    def __call__(self, image: Pixels, name: bytes, view: int) -> Pixels:
        """Return a view (H', W', 3) of an image, uint8 (H, W, 3), of the sample with an id.

        View 0 is the image itself.

        Raises:
            BadImageError: a step cannot work on this image.
        """
        if view == 0:
            return image
        generator = torch.Generator().manual_seed(seed_of(self.seed, name, view))
        source = image if image.flags.writeable else image.copy()
        pixels = torch.from_numpy(source).permute(2, 0, 1)
        try:
            with OwnRandom(generator):
                for step in self._steps:
                    pixels = step(pixels)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise BadImageError(f"cannot be augmented: {reason}") from error
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def seed_of(seed: int, name: bytes, view: int) -> int:
    """Return the seed of a view's generator, by the views' seed, the sample's id and the view's number."""
    digest = hashlib.sha256(b"featcache view 1\0%d %d " % (seed, view) + name).digest()
    return int.from_bytes(digest[:4], "big")  # torch's generator looks at 32 bits alone

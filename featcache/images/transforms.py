"""Steps of an augmentation that torchvision takes.

torchvision draws from torch's one global generator. Here each view has a generator of its own, and a mode of
torch, which belongs to the thread that entered it, hands that generator to every function that draws. So
threads need no lock, and nothing global is read or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

from featcache.images.augment import Draws, Pixels, Step

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


_MADE: dict[str, Callable[[Mapping[str, Any]], v2.Transform]] = {
    "jitter": lambda o: v2.ColorJitter(o["brightness"], o["contrast"], o["saturation"], o["hue"]),
    "grey": lambda o: v2.RandomGrayscale(o["p"]),
    "blur": lambda o: v2.GaussianBlur(o["kernel"], tuple(o["sigma"])),
    "rotate": lambda o: v2.RandomRotation(o["degrees"], v2.InterpolationMode.BILINEAR),
    "autoaugment": lambda o: v2.AutoAugment(v2.AutoAugmentPolicy(o["policy"])),
    "randaugment": lambda o: v2.RandAugment(o["num_ops"], o["magnitude"]),
    "trivialaugment": lambda o: v2.TrivialAugmentWide(),
}


def step_of(options: Mapping[str, Any]) -> Step:
    """Return a step that torchvision takes; what it raises on an image it cannot work on passes as it is."""
    transform = _MADE[options["name"]](options)

    def take(image: Pixels, draws: Draws) -> Pixels:
        """Return the image transformed by what is drawn."""
        # torch's generator looks at 32 bits of a seed alone
        generator = torch.Generator().manual_seed(draws.whole() >> 32)
        plain = image.flags.writeable and min(image.strides) > 0  # torch warns of other arrays
        pixels = torch.from_numpy(image if plain else image.copy()).permute(2, 0, 1)
        with OwnRandom(generator):
            made: Pixels = transform(pixels).permute(1, 2, 0).numpy()
        return made

    return take
